"""DuckDB as the pages use it: in memory, and confined to the folders that are shown."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nonpareil.viewing.disagreement import of_two_lists

READ = "read_parquet(?, hive_partitioning = false, filename = true, file_row_number = true)"
"""The rows of files, given as a list of `pattern_of`s; `filename` and `file_row_number` say where each lies."""


def connect(folders: Iterable[Path]) -> Any:
    """A database in memory that can read below these folders and nowhere else, and fetches no extension."""
    import duckdb

    connection: Any = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": "",  # nothing is written, not even what memory has no room for
        },
    )
    connection.create_function(
        "disagreement",
        of_two_lists,
        ["DOUBLE[]", "DOUBLE[]"],
        "DOUBLE",
        type="arrow",
        null_handling="special",
    )
    # A pattern is held against them as it stands, and then what it finds.
    places = dict.fromkeys(place for folder in folders for place in (str(folder), pattern_of(folder)))
    allowed = ", ".join(map(text, places))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def pattern_of(path: Path) -> str:
    """A path as DuckDB reads it, which takes names of files for patterns."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def name(identifier: str) -> str:
    """A column's name within SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text within SQL, where a parameter cannot stand."""
    return "'" + value.replace("'", "''") + "'"
