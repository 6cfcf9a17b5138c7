"""The files of a folder of groups, as they are now: which are there, and how each one's columns are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts.checksum import seal_holds
from nonpareil.rollouts.columns import ESCAPE, JSON_PREFIX, OPENING, OWN_NAMES, REWARD_PREFIX
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.rollouts.store import DATA_FOLDER, ShardNotes, notes_of
from nonpareil.terminal import printable, reason_of
from nonpareil.viewing.database import name

Stamp = tuple[int, int, int]
"""Of a file: inode, bytes and time of writing; another one is another file."""


@dataclass(frozen=True)
class ShardFile:
    """A file that was found whole, and how its columns are read."""

    path: Path
    stamp: Stamp
    notes: ShardNotes
    reads: tuple[tuple[str, str, str], ...]
    """(name of a column, kind, SQL over the file's columns) of each; equal for equal schemas."""
    unlisted: tuple[str, ...] = ()
    """Columns that DuckDB cannot tell from another, since names differ in case only."""


@dataclass
class FolderState:
    """What a folder says of itself, beside its groups."""

    manifest: Mapping[str, Any] | None = None
    problems: dict[str, str] = field(default_factory=dict)
    """By file: why it is not read."""


def check_place(path: str | Path, option: str = "groups") -> Path:
    """The place of groups that a user named: a folder with shards (or one that a run has begun), or one file.

    Raises:
        ConfigError: nothing there, or nothing that holds groups; naming the option.
    """
    place = Path(path).expanduser()
    if not _is_text(place.absolute()):
        raise ConfigError(
            f"{option}={str(path)!r}: DuckDB reads no path that is not UTF-8; rename the folder"
        )
    if not place.exists():
        raise ConfigError(
            f"{option}={str(path)!r}: nothing is there; give a folder that `nonpareil sample` wrote"
        )
    if place.is_file():
        if place.suffix != ".parquet":
            raise ConfigError(
                f"{option}={str(path)!r} is no Parquet file; give a folder of groups or a .parquet file"
            )
        read_shard_file(place)
        return place
    try:
        manifest = read_manifest(place)
    except DataError as error:
        raise ConfigError(f"{option}: {error}") from error
    files = files_of(place)
    if not files and manifest is None:
        raise ConfigError(
            f"{option}={str(path)!r} holds no groups: no manifest and no Parquet file is in it; give a folder "
            "that `nonpareil sample` wrote"
        )
    if files and manifest is None:
        read_shard_file(files[0])
    return place


def files_of(place: Path) -> list[Path]:
    """The shards of a folder, of its `data` folder, or the file itself; in the order drawn."""
    if place.is_file():
        return [place]
    data = place / DATA_FOLDER
    return sorted((data if data.is_dir() else place).glob("*.parquet"))


def stamp_of(path: Path) -> Stamp | None:
    """None where the file is gone meanwhile."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_shard_file(path: Path) -> ShardFile:
    """Look at a file: whether every byte is as it was written, what it says of itself, which columns it has.

    Raises:
        DataError: it is damaged, or holds no groups.
    """
    stamp = stamp_of(path)
    if not _is_text(path):
        raise DataError(f"{path}: DuckDB reads no path that is not UTF-8; rename the file")
    try:
        content = path.read_bytes()
        if seal_holds(content) is False:
            raise DataError(
                f"{path}: its checksum does not hold: it was damaged, or another program rewrote it"
            )
        schema = pq.read_schema(pa.BufferReader(content))
    except DataError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}") from error
    missing = [
        own for own in OWN_NAMES if own not in schema.names and own in ("prompt_id", "prompt", "completions")
    ]
    if missing or stamp is None:
        lacks = f"it has no column {missing[0]!r}" if missing else "it is gone"
        raise DataError(
            f"{path} holds no groups: {lacks} (it has: {', '.join(printable(n) for n in schema.names[:12])})"
        )
    reads, unlisted = _reads(schema)
    return ShardFile(path, stamp, notes_of(schema), reads, unlisted)


def _reads(schema: pa.Schema) -> tuple[tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    reads: list[tuple[str, str, str]] = [
        ("prompt_id", "own", "CAST(prompt_id AS VARCHAR)"),
        ("prompt", "own", _prompt(schema.field("prompt").type)),
        ("m", "own", "len(completions)"),
        ("lengths", "own", _lengths(schema)),
        ("cut", "own", _cut(schema)),
        ("different", "own", _different(schema)),
    ]
    seen: set[str] = set()
    unlisted = []
    for column in schema:
        if column.name.lower() in seen or "\0" in column.name:
            unlisted.append(column.name)
        elif column.name == "rewards" or column.name.startswith(REWARD_PREFIX):
            if not _is_lists(column.type):
                unlisted.append(column.name)
                continue
            shown = column.name.removeprefix(REWARD_PREFIX) if column.name != "rewards" else ""
            reads.append((shown, "reward", _numbers(column.name)))
        elif column.name not in (*OWN_NAMES, OPENING):
            shown = column.name.removeprefix(JSON_PREFIX).removeprefix(ESCAPE)
            reads.append((shown, *_data(column)))
        seen.add(column.name.lower())
    return tuple(reads), tuple(unlisted)


def _numbers(column: str) -> str:
    """NaN and infinities are nulls, as everywhere."""
    return f"list_transform(CAST({name(column)} AS DOUBLE[]), lambda x: CASE WHEN isfinite(x) THEN x ELSE NULL END)"


def _prompt(kind: pa.DataType) -> str:
    """A conversation as text: a turn after the other, each behind its role."""
    if not _is_lists(kind) or not pa.types.is_struct(kind.value_type):
        return "CAST(prompt AS VARCHAR)"
    names = [kind.value_type.field(i).name for i in range(kind.value_type.num_fields)]
    role, content = (
        f"coalesce(CAST(turn.{name(each)} AS VARCHAR), '')" if each in names else "''"
        for each in ("role", "content")
    )
    return f"array_to_string(list_transform(prompt, lambda turn: {role} || ': ' || {content}), chr(10))"


def _lengths(schema: pa.Schema) -> str:
    """Tokens of each completion; null where its ids are not known."""
    if "completion_token_ids" not in schema.names:
        return "CAST(NULL AS BIGINT[])"
    return "list_transform(completion_token_ids, lambda ids: nullif(len(ids), 0))"


def _cut(schema: pa.Schema) -> str:
    if "finish_reasons" not in schema.names:
        return "CAST(NULL AS BIGINT)"
    return "len(list_filter(finish_reasons, lambda reason: reason = 'length'))"


def _different(schema: pa.Schema) -> str:
    texts = "len(list_distinct(completions))"
    if "completion_token_ids" not in schema.names:
        return texts
    known = "len(list_filter(completion_token_ids, lambda ids: len(ids) > 0)) = len(completions)"
    hashes = "len(list_distinct(list_transform(completion_token_ids, lambda ids: hash(ids))))"
    return f"CASE WHEN {known} THEN {hashes} ELSE {texts} END"


def _data(column: pa.Field) -> tuple[str, str]:
    """Kind and SQL of a dataset's column: a number, or a text."""
    kind, quoted = column.type, name(column.name)
    if pa.types.is_boolean(kind):
        return "text", f"CAST({quoted} AS VARCHAR)"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "whole", f"CAST({quoted} AS BIGINT)"
    if pa.types.is_floating(kind):
        return "number", f"CASE WHEN isfinite({quoted}) THEN CAST({quoted} AS DOUBLE) END"
    return "text", f"CAST({quoted} AS VARCHAR)"


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes of a name that are no UTF-8
        return False
    return True


def _is_lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
