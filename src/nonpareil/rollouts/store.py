"""Groups as Parquet shards: written whole or not at all, checksummed, readable as any Parquet is."""

import importlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nonpareil.errors import DataError, NotFiniteError
from nonpareil.files import write_bytes
from nonpareil.records import Group, refuse_repeated
from nonpareil.rollouts.checksum import CHECKSUM_KEY, FOOTER_KEY, seal_holds, sealed_parquet
from nonpareil.rollouts.columns import (
    FURTHER,
    OPENING,
    OWN_NAMES,
    REWARD_PREFIX,
    column_types,
    from_stored,
    further_of,
    message_types,
    stored_column,
    whole_prompt,
)
from nonpareil.rollouts.token_lists import token_lists
from nonpareil.terminal import printable

DATA_FOLDER = "data"
"""Shards lie apart from the manifest: `pandas.read_parquet` and `load_dataset` take the folder whole."""
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
REWARD_TYPE = pa.list_(pa.float64())
"""In float32 rewards such as 1e8 + 0.1 would tie. Files of earlier versions have that, and are read as they are."""


@dataclass
class ShardNotes:
    """What a shard says of itself, in the Parquet file's own metadata: it is committed with the data."""

    rewards: dict[str, Any] = field(default_factory=dict)
    """The settings each reward column was scored with, by name."""
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often each reason made a reward null, by name of the reward."""
    aggregate: dict[str, float] = field(default_factory=dict)
    """The weights by name that `rewards` was made with."""
    draw: dict[str, Any] = field(default_factory=dict)
    """How the run drew it, as its manifest says under `draw`; empty in a file that no run wrote."""
    index: int | None = None
    """Its place in the run."""
    shard_size: int = 0
    """Of the run: prompts per shard."""


def shard_path(folder: Path, index: int) -> Path:
    """Where the shard of an index lies in a rollout folder."""
    return folder / DATA_FOLDER / f"shard-{index:05d}.parquet"


def to_table(
    groups: Sequence[Group],
    types: Mapping[str, pa.DataType | None] | None = None,
    notes: ShardNotes | None = None,
) -> pa.Table:
    """The groups as a table, one row each. `types` are the dataset columns', by default inferred.

    Raises:
        DataError: string prompts and conversations in one shard, or a column without a type.
        NotFiniteError: a log-prob that is NaN or infinite.
    """
    if types is None:
        types = column_types([g.columns for g in groups]) | message_types(g.prompt for g in groups)
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
    _check_logprobs(groups, columns["logprobs"])
    for name in dict.fromkeys(name for group in groups for name in group.rewards_by_name):
        values = [group.rewards_by_name.get(name) for group in groups]
        columns[REWARD_PREFIX + name] = pa.array(values, REWARD_TYPE)
    if any(group.rewards is not None for group in groups):
        columns["rewards"] = pa.array([group.rewards for group in groups], REWARD_TYPE)
    if kinds == {False}:
        columns[OPENING] = pa.array([group.opening for group in groups], pa.string())
    for name, kind in types.items():
        if name == FURTHER:
            columns[FURTHER] = pa.array([further_of(group.prompt) for group in groups], kind)
            continue
        stored, array = stored_column(name, [group.columns.get(name) for group in groups], kind)
        columns[stored] = array
    return with_notes(pa.table(columns), notes or ShardNotes())


def _check_logprobs(groups: Sequence[Group], column: pa.Array) -> None:
    """Whatever drew them: a completion without log-probs that are numbers is no draw, and is not kept."""
    if pc.all(pc.is_finite(pc.list_flatten(pc.list_flatten(column)))).as_py() is False:
        bad = next(g for g in groups if not all(map(math.isfinite, chain.from_iterable(g.logprobs))))
        raise NotFiniteError(
            f"prompt {bad.prompt_id}: log-probs of its completions are NaN or infinite, so the engine did not draw "
            "them from a distribution; mend the engine, or draw in another dtype"
        )


def with_notes(table: pa.Table, notes: ShardNotes) -> pa.Table:
    """The table with other notes."""
    metadata = {**(table.schema.metadata or {}), METADATA_KEY: json.dumps(vars(notes)).encode()}
    return table.replace_schema_metadata(metadata)


def narrow_rewards(schema: pa.Schema) -> list[str]:
    """The reward columns of a file by an earlier version, which kept them in float32."""
    rewards = [name for name in schema.names if name == "rewards" or name.startswith(REWARD_PREFIX)]
    return [name for name in rewards if schema.field(name).type == pa.list_(pa.float32())]


def notes_of(schema: pa.Schema) -> ShardNotes:
    """What a shard says of itself.

    Raises:
        DataError: something under our name that is not ours.
    """
    content = (schema.metadata or {}).get(METADATA_KEY)
    try:
        return ShardNotes(**json.loads(content)) if content else ShardNotes()
    except (ValueError, TypeError) as error:
        raise DataError(
            f"a Parquet file's metadata {METADATA_KEY.decode()!r} is not ours: {error}"
        ) from error


def write_table(path: Path, table: pa.Table) -> Path:
    """Write a shard in one step, with its checksum."""
    return write_bytes(path, sealed_parquet(table))


def write_shard(
    path: Path,
    groups: Sequence[Group],
    types: Mapping[str, pa.DataType | None] | None = None,
    notes: ShardNotes | None = None,
) -> Path:
    """Write groups to one Parquet file, in one step.

    Raises:
        DataError: as `to_table`.
    """
    return write_table(path, to_table(groups, types, notes))


def read_table(path: Path) -> pa.Table:
    """A shard's table, after its checksum was found to hold; of a file that has none, every page is checked.

    Raises:
        DataError: the file is missing, damaged or holds no groups.
    """
    return read_columns(path)[0]


def read_columns(
    path: Path, wanted: Collection[str] | None = None, *, without: Collection[str] = ()
) -> tuple[pa.Table, int]:
    """Those of a shard's columns that are there and wanted (None: all), and how many completions the file holds.

    `without`: columns that are not, whatever is wanted.

    Checked as a whole all the same: every byte of a file with a checksum is read for it, and no column is decoded
    for it but the wanted ones; of a file without one, all pages of all columns.

    Raises:
        DataError: as `read_table`.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"no such file of groups: {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    holds = seal_holds(content)
    if holds is False:
        raise _corrupt(path, "its checksum does not hold: it was damaged, or another program rewrote it")
    try:
        # Of a ParquetFile rather than pq.read_table, which would make columns of a folder's name.
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            names, completions = file.schema_arrow.names, _num_completions(file.metadata)
            kept = [n for n in names if (wanted is None or n in wanted) and n not in without]
            # Threads of Arrow that are still there when Python ends abort the process, one time in three.
            table = file.read(columns=kept if holds else None, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _corrupt(path, printable(str(error))) from error
    metadata = dict(table.schema.metadata or {})
    if holds is None and b'"draw"' in metadata.get(METADATA_KEY, b""):
        raise _corrupt(path, "its checksum is gone")
    missing = [name for name in OWN_NAMES if name not in names and name != "rewards"]
    if missing:
        raise DataError(
            f"{path} holds no groups: it has no column {missing[0]!r} "
            f"(it has: {', '.join(map(printable, names))})"
        )
    for key in (CHECKSUM_KEY, FOOTER_KEY):
        metadata.pop(key.encode(), None)  # of this file, and not of what is made from it
    table = table.select([place for place, name in enumerate(table.column_names) if name in kept])
    return table.replace_schema_metadata(metadata), completions


def _num_completions(metadata: pq.FileMetaData) -> int:
    """By the footer; a group without any counts as one."""
    columns = (
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    return sum(each.num_values for each in columns if each.path_in_schema.startswith("completions."))


def _corrupt(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is corrupt ({reason}); delete it and rerun: only that shard is drawn anew")


def read_shard(path: Path) -> list[Group]:
    """The groups of one Parquet file.

    Raises:
        DataError: as `read_table`, or a prompt id twice.
    """
    groups = to_groups(read_table(path))
    refuse_repeated((group.prompt_id for group in groups), str(path))
    return groups


def to_groups(table: pa.Table) -> list[Group]:
    """The table's rows as groups; a list whose column was not read is empty."""
    names = table.column_names
    rewards = [name for name in names if name.startswith(REWARD_PREFIX)]
    columns = {
        name: token_lists(table[name]) if name == "completion_token_ids" else table[name].to_pylist()
        for name in names
    }
    own = (*OWN_NAMES, OPENING, FURTHER, *rewards)
    further = dict(from_stored(name, columns[name]) for name in names if name not in own)
    scores = {name.removeprefix(REWARD_PREFIX): columns[name] for name in rewards}
    aggregates = columns.get("rewards", [None] * len(table))
    return [
        Group(
            prompt=whole_prompt(
                columns["prompt"][row], columns[FURTHER][row] if FURTHER in columns else None
            ),
            rewards_by_name={
                n: _numbers(values[row]) for n, values in scores.items() if values[row] is not None
            },
            rewards=None if aggregates[row] is None else _numbers(aggregates[row]),
            columns={name: values[row] for name, values in further.items()},
            opening=columns[OPENING][row] if OPENING in columns else None,
            **{name: columns[name][row] if name in columns else [] for name in _OWN_COLUMNS},
        )
        for row in range(len(table))
    ]


def _numbers(values: list[float | None]) -> list[float | None]:
    """Null for NaN, as pandas writes a null, and for infinities."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


def __getattr__(name: str) -> Any:
    """`read_groups`, which scripts know by this place, stands in `rollouts.reading`, built upon this module."""
    if name == "read_groups":
        return getattr(importlib.import_module("nonpareil.rollouts.reading"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
