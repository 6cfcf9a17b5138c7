"""Rows of a dataset as one file, JSON lines or Parquet, written as they come: never all of them in memory."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nonpareil.errors import DataError
from nonpareil.files import whole_file
from nonpareil.terminal import printable

Row = dict[str, Any]
Rows = Callable[[], Iterable[Row]]
"""Gives all rows, from the first one on, at each call."""
ROWS_AT_A_TIME = 1024
ROW_GROUP_BYTES = 64 * 2**20
"""Of Arrow's memory: so much of a Parquet file is held until it is written as a row group."""
_MISFITS = (pa.ArrowException, OverflowError, ValueError, TypeError)


def write_rows(path: Path, rows: Rows) -> None:
    """Write a .jsonl or a .parquet file in one step; where `rows` raises an error, nothing is written.

    A Parquet file of more than `ROW_GROUP_BYTES` is gone through twice: a column has the type of all its values.

    Raises:
        DataError: rows that do not fit one Parquet table.
    """
    with whole_file(path) as stream:
        if path.suffix == ".parquet":
            _write_parquet(stream, rows)
            return
        for row in rows():
            stream.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode())


def _write_parquet(stream: BinaryIO, rows: Rows) -> None:
    found = _types(rows)
    if found is None:
        table = _table_of_all(list(rows()))
        pq.write_table(table, stream)
        return
    types, first = found
    schema = pa.schema(list(types.items()))
    with pq.ParquetWriter(stream, schema) as writer:
        for table in [_joined(first, schema)] if first else _row_groups(rows, schema):
            writer.write_table(table)


def _types(rows: Rows) -> tuple[dict[str, pa.DataType], list[pa.Table]] | None:
    """The columns' types, and all rows where they are few enough to be one row group; see `_merged`."""
    types: dict[str, pa.DataType] = {}
    held: list[pa.Table] = []
    size = 0
    for some in _batches(rows()):
        try:
            table = _table(some)
        except _MISFITS:
            return None
        if not _merged(types, table.schema):
            return None
        size += table.nbytes
        if size <= ROW_GROUP_BYTES:
            held.append(table)
        else:
            held.clear()
    return types, held


def _merged(types: dict[str, pa.DataType], schema: pa.Schema) -> bool:
    """Add the types of some rows; False where one differs, as of whole and broken numbers.

    What both would be together is for Arrow to say, of all values at once. Nulls alone fit any type.
    """
    for field in schema:
        known = types.get(field.name, pa.null())
        if pa.types.is_null(known):
            types[field.name] = field.type
        elif not pa.types.is_null(field.type) and field.type != known:
            return False
    return True


def _row_groups(rows: Rows, schema: pa.Schema) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    size = 0
    for table in map(_table, _batches(rows())):
        if held and size + table.nbytes > ROW_GROUP_BYTES:
            yield _joined(held, schema)
            held, size = [], 0
        held.append(table)
        size += table.nbytes
    yield _joined(held, schema)


def _joined(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Tables of some rows as one; a column that one lacks, or has nulls alone of, has nulls there."""
    parts = []
    for table in tables:
        columns = [
            table[field.name]
            if field.name in table.column_names and table[field.name].type == field.type
            else pa.nulls(len(table), field.type)
            for field in schema
        ]
        parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts).combine_chunks()


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    held = []
    for row in rows:
        held.append(row)
        if len(held) == ROWS_AT_A_TIME:
            yield held
            held = []
    if held:
        yield held


def _table(rows: Sequence[Row]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _table_of_all(rows: Sequence[Row]) -> pa.Table:
    try:
        return _table(rows)
    except _MISFITS as error:
        raise DataError(
            f"the rows do not fit one Parquet table: {printable(str(error))}; export to .jsonl"
        ) from error
