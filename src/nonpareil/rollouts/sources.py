"""Where prompts come from: a file, a saved dataset or the hub, read into rows."""

import io
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from nonpareil.errors import DataError, NonpareilError
from nonpareil.models.hub import hub_answers, hub_or_cache, missing, nearest_path
from nonpareil.setting_types import nearest
from nonpareil.terminal import reason_of
from nonpareil.text_files import parse_json, read_lines, read_text

FILE_TYPES = (".parquet", ".json", ".jsonl", ".csv", ".txt")


def read_rows(
    source: str,
    split: str,
    dataset_config: str | None,
    prompt_column: str,
    first: int | None = None,
    files: Mapping[str, Any] | None = None,
) -> list[Mapping[str, Any]]:
    """Every row of a source; see `load_prompts`. `first`: of a hub dataset read these alone, as a stream.

    `files`: where a dataset's files lie, `data_dir` and `data_files` of `datasets.load_dataset`.

    Raises:
        DataError: no such source, one that cannot be read, or an unknown split.
    """
    path = Path(source).expanduser()
    if files:
        return _from_hub(source, split, dataset_config, first, files)
    if path.is_file():
        return _read_file(path, prompt_column)
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return _from_disk(path, split) if saved else _from_hub(str(path), split, dataset_config, first)
    if path.suffix in FILE_TYPES or source.startswith((".", "/", "~")) or source.count("/") > 1:
        reason = missing(source) if path.is_symlink() else "no such file or directory"
        raise DataError(f"dataset_name={source!r}: {reason}{nearest_path(source)}")
    return _from_hub(source, split, dataset_config, first)


def _parquet(path: Path) -> pa.Table:
    """Read without threads of Arrow: one that is still there when Python ends can abort the process."""
    content = pa.BufferReader(path.read_bytes())
    return pyarrow.parquet.ParquetFile(content).read(use_threads=False)


def _read_file(path: Path, prompt_column: str) -> list[Mapping[str, Any]]:
    readers: dict[str, Callable[[], list[Mapping[str, Any]]]] = {
        ".parquet": lambda: _rows_of(_parquet(path), path),
        ".json": lambda: _json_rows(path),
        ".jsonl": lambda: _json_lines(path),
        ".csv": lambda: _csv_rows(path, prompt_column),
        ".txt": lambda: [{prompt_column: line} for line in read_lines(path)],
    }
    if path.suffix not in readers:
        raise DataError(
            f"dataset_name={str(path)!r}: a file of type {path.suffix or 'none'!r} is not read; give one of "
            f"{', '.join(FILE_TYPES)}"
        )
    try:
        return readers[path.suffix]()
    except NonpareilError as error:
        raise DataError(f"dataset_name={error}") from error
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"dataset_name={str(path)!r} cannot be read as {path.suffix[1:]}: {reason_of(error)}"
        ) from error


def _json_rows(path: Path) -> list[Mapping[str, Any]]:
    text, where = read_text(path), repr(str(path))
    try:
        rows = parse_json(text, where)
    except DataError:
        if text.lstrip().startswith("{") and "\n" in text.strip():  # many write JSON lines under this name
            return _json_lines(path)
        raise
    if isinstance(rows, dict) and len(rows) == 1:
        rows = next(iter(rows.values()))  # {"data": [...]}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{where} must hold a list of objects, or one object a line")
    return rows


def _json_lines(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{str(path)!r}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise DataError(f"{where} is a {type(row).__name__}; each line must be an object")
        rows.append(row)
    return rows


def _csv_rows(path: Path, prompt_column: str) -> list[Mapping[str, Any]]:
    # Numbers become numbers, but a prompt such as "2024" stays text.
    convert = pyarrow.csv.ConvertOptions(column_types={prompt_column: pa.string()})
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    text = io.BytesIO(read_text(path).encode())
    return _rows_of(pyarrow.csv.read_csv(text, parse_options=parse, convert_options=convert), path)


def _rows_of(table: pa.Table, path: Path) -> list[Mapping[str, Any]]:
    """A row has one value a name: of two columns of one name, one would be lost."""
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{str(path)!r} has {names.count(name)} columns {name!r}; rename or remove one")
    rows = table.to_pylist()
    for field in filter(_is_json, table.schema):
        for row in rows:  # Arrow gives its text, which would pass for a string prompt
            if row[field.name] is not None:
                row[field.name] = parse_json(row[field.name], f"{str(path)!r}, column {field.name!r}")
    return rows


def _is_json(field: pa.Field) -> bool:
    """Whether a column holds JSON's values (datasets' type Json); Arrow before 19 keeps the name apart."""
    named = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
    return "arrow.json" in (named, getattr(field.type, "extension_name", ""))


def _from_disk(path: Path, split: str) -> list[Mapping[str, Any]]:
    import datasets  # slow to import, and files do without

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever damage leads the library to
        raise DataError(f"dataset_name={str(path)!r} cannot be read: {reason_of(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(_unknown_split(str(path), split, list(loaded)))
        loaded = loaded[split]
    return loaded.to_list()


def _from_hub(
    name: str,
    split: str,
    dataset_config: str | None,
    first: int | None,
    files: Mapping[str, Any] | None = None,
) -> list[Mapping[str, Any]]:
    import datasets

    try:
        with hub_or_cache(name):
            loaded = datasets.load_dataset(
                name, dataset_config, split=split, streaming=first is not None, **(files or {})
            )
            rows = loaded.to_list() if first is None else list(islice(loaded, first))
    except Exception as error:  # whatever damage leads the library to
        splits = _splits(name, dataset_config) if "split" in str(error) else []
        if splits and split not in splits:
            raise DataError(_unknown_split(name, split, splits)) from error
        if Path(name).is_dir():
            raise DataError(f"dataset_name={name!r} could not be loaded: {_whole_reason(error)}") from error
        absent = isinstance(error, ConnectionError) and not hub_answers()
        reason = missing(name) if absent else reason_of(error)
        raise DataError(
            f"dataset_name={name!r} is no file here and could not be loaded: {reason}{nearest_path(name)}"
        ) from error
    if loaded.info.builder_name == "text":  # which leaves the byte order mark of each file where it stands
        rows = [{**row, "text": row["text"].removeprefix("\ufeff")} for row in rows]
    return rows


def _whole_reason(error: Exception) -> str:
    """With what lies behind it: the library's own words are often no more than that there was an error."""
    cause = f" ({reason_of(error.__cause__)})" if error.__cause__ else ""
    return reason_of(error) + cause


def _splits(name: str, dataset_config: str | None) -> list[str]:
    """Of a dataset that loads; none where even that fails."""
    import datasets

    try:
        with hub_or_cache(name):
            return list(datasets.get_dataset_split_names(name, dataset_config))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
        return []


def _unknown_split(source: str, split: str, splits: list[str]) -> str:
    return (
        f"{source!r} has no split {split!r}; it has: {', '.join(splits)}{nearest(split, splits, quoted=True)}"
    )
