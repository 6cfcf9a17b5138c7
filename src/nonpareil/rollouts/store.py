"""Groups as Parquet shards: written whole or not at all, checksummed, readable as any Parquet is."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nonpareil.errors import DataError
from nonpareil.files import write_bytes
from nonpareil.records import Group

DATA_FOLDER = "data"
"""Shards lie apart from the manifest: `pandas.read_parquet` and `load_dataset` take the folder whole."""
REWARD_PREFIX = "rewards/"
ESCAPE = "columns/"
"""Put before a dataset column whose name a group's own column has; taken off when reading."""
METADATA_KEY = b"nonpareil"

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_OWN_COLUMNS = {
    "prompt_id": pa.string(),
    "prompt_token_ids": pa.list_(pa.int32()),
    "completions": pa.list_(pa.string()),
    "completion_token_ids": pa.list_(pa.list_(pa.int32())),
    "finish_reasons": pa.list_(pa.string()),
    "logprobs": pa.list_(pa.list_(pa.float32())),
}


@dataclass
class ShardNotes:
    """What a shard says of itself, in the Parquet file's own metadata: it is committed with the data."""

    rewards: dict[str, Any] = field(default_factory=dict)
    """The settings each reward column was scored with, by name."""
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often each reason made a reward null, by name of the reward."""
    aggregate: dict[str, float] = field(default_factory=dict)
    """The weights by name that `rewards` was made with."""


def shard_path(folder: Path, index: int) -> Path:
    """Where the shard of an index lies in a rollout folder."""
    return folder / DATA_FOLDER / f"shard-{index:05d}.parquet"


def stored_name(name: str) -> str:
    """The name a dataset column has on disk."""
    own = name in (*_OWN_COLUMNS, "prompt", "rewards") or name.startswith((REWARD_PREFIX, ESCAPE))
    return ESCAPE + name if own else name


def column_types(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The Arrow type of every dataset column over all rows, so that all shards of a run have one schema.

    Raises:
        DataError: a column whose values have no common type, naming it.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    types = {}
    for name in names:
        try:
            types[name] = pa.array([row.get(name) for row in rows]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            raise DataError(
                f"column {name!r} cannot be stored in Parquet: {error}; drop it, or give its values one type"
            ) from error
    return types


def to_table(
    groups: Sequence[Group], types: Mapping[str, pa.DataType] | None = None, notes: ShardNotes | None = None
) -> pa.Table:
    """The groups as a table, one row each. `types` are the dataset columns', by default inferred.

    Raises:
        DataError: string prompts and conversations in one shard, or a column without a type.
    """
    types = column_types([group.columns for group in groups]) if types is None else types
    kinds = {isinstance(group.prompt, str) for group in groups}
    if len(kinds) > 1:
        raise DataError("string prompts and conversations are mixed; a file of groups holds one kind")
    columns: dict[str, pa.Array] = {}
    for name, kind in _OWN_COLUMNS.items():
        columns[name] = pa.array([getattr(group, name) for group in groups], kind)
        if name == "prompt_id":
            columns["prompt"] = pa.array(
                [g.prompt for g in groups], _MESSAGES if kinds == {False} else pa.string()
            )
    for name in dict.fromkeys(name for group in groups for name in group.rewards_by_name):
        values = [group.rewards_by_name.get(name) for group in groups]
        columns[REWARD_PREFIX + name] = pa.array(values, pa.list_(pa.float32()))
    if any(group.rewards is not None for group in groups):
        columns["rewards"] = pa.array([group.rewards for group in groups], pa.list_(pa.float32()))
    for name, kind in types.items():
        columns[stored_name(name)] = pa.array([group.columns.get(name) for group in groups], kind)
    return with_notes(pa.table(columns), notes or ShardNotes())


def with_notes(table: pa.Table, notes: ShardNotes) -> pa.Table:
    """The table with other notes."""
    content = {"rewards": notes.rewards, "failures": notes.failures, "aggregate": notes.aggregate}
    metadata = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(content).encode()}
    return table.replace_schema_metadata(metadata)


def notes_of(schema: pa.Schema) -> ShardNotes:
    """What a shard says of itself."""
    content = (schema.metadata or {}).get(METADATA_KEY)
    return ShardNotes(**json.loads(content)) if content else ShardNotes()


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a shard in one step, with a checksum on every page."""
    return write_bytes(path, parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    """A shard's file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def write_shard(path: Path, groups: Sequence[Group], types: Mapping[str, pa.DataType] | None = None) -> Path:
    """Write groups to one Parquet file, in one step.

    Raises:
        DataError: as `to_table`.
    """
    return write_table(path, to_table(groups, types))


def read_table(path: Path) -> pa.Table:
    """A shard's table, every page checked.

    Raises:
        DataError: the file is missing, broken or holds no groups.
    """
    try:
        # Of a ParquetFile rather than pq.read_table, which would make columns of a folder's name.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except FileNotFoundError as error:
        raise DataError(f"no such file of groups: {path}") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is corrupt ({error}); delete it and rerun: only that shard is drawn anew"
        ) from error
    missing = [name for name in ("prompt", *_OWN_COLUMNS) if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path} holds no groups: it has no column {missing[0]!r} "
            f"(it has: {', '.join(table.column_names)})"
        )
    return table


def read_shard(path: Path) -> list[Group]:
    """The groups of one Parquet file.

    Raises:
        DataError: as `read_table`.
    """
    return to_groups(read_table(path))


def read_groups(path: str | Path) -> list[Group]:
    """The groups of a rollout folder, its `data` folder, or one Parquet file; in the order drawn.

    Raises:
        DataError: nothing there, or a broken file.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / DATA_FOLDER
        files = sorted((inside if inside.is_dir() else path).glob("*.parquet"))
        if not files:
            raise DataError(f"{path} holds no shards; give a folder that `nonpareil sample` wrote")
        return [group for file in files for group in read_shard(file)]
    return read_shard(path)


def to_groups(table: pa.Table) -> list[Group]:
    """The table's rows as groups."""
    names = table.column_names
    rewards = [name for name in names if name.startswith(REWARD_PREFIX)]
    own = {*_OWN_COLUMNS, "prompt", "rewards", *rewards}
    columns = {name: table[name].to_pylist() for name in names}
    further = {name.removeprefix(ESCAPE): columns[name] for name in names if name not in own}
    scores = {name.removeprefix(REWARD_PREFIX): columns[name] for name in rewards}
    aggregates = columns.get("rewards", [None] * len(table))
    return [
        Group(
            prompt=columns["prompt"][row],
            rewards_by_name={name: values[row] for name, values in scores.items() if values[row] is not None},
            rewards=aggregates[row],
            columns={name: values[row] for name, values in further.items()},
            **{name: columns[name][row] for name in _OWN_COLUMNS},
        )
        for row in range(len(table))
    ]
