"""The numbers of many groups for a best-of-N curve, from Arrow columns: no list is made of a completion."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nonpareil.records import SOURCE, Group, GroupNumbers, refuse_repeated
from nonpareil.rollouts.reading import read_available, read_shards
from nonpareil.rollouts.store import read_columns
from nonpareil.rollouts.vbon_lines import is_vbon

_COLUMNS = ("prompt_id", "completion_token_ids", "rewards")
_READ = (*_COLUMNS, SOURCE)
_TEXTS = "completions"


def read_numbers(path: Path) -> tuple[GroupNumbers | list[Group], str]:
    """The groups that `read_available` reads, as their numbers; as they are where they are no scored rectangle.

    Of a curve they make the same, and whoever makes one of groups that lack rewards, or are of unequal size, names
    them. Texts are read of those shards alone that lack token ids.

    Raises:
        ConfigError, DataError: as `read_available`.
    """
    if not path.is_dir():
        shards, lacking = ([] if is_vbon(path) else [_numbers_of(_read(path))]), ""
    else:
        shards, lacking = read_shards(path, _read, _numbers_of)
    numbers = _joined(shards)
    if numbers is None:
        return read_available(path)
    refuse_repeated(numbers.prompt_ids, str(path))
    return numbers, lacking


def _read(path: Path) -> pa.Table:
    table, completions = read_columns(path, _READ)
    if _has_ids(table["completion_token_ids"], completions):
        return table
    return read_columns(path, (*_READ, _TEXTS))[0]


def _has_ids(column: pa.ChunkedArray, completions: int) -> bool:
    """Whether there are so many lists of ids, none of them empty."""
    if not _is_lists(column) or not _is_lists(ids := _flat(column)):
        return False
    return len(ids) == completions and pc.min(pc.list_value_length(ids)).as_py() != 0


def _joined(shards: Sequence[GroupNumbers | None]) -> GroupNumbers | None:
    """None where one is, or where they differ in their groups' size."""
    known = [shard for shard in shards if shard is not None]
    if not known or len(known) < len(shards) or len({shard.rewards.shape[1] for shard in known}) > 1:
        return None
    sources = [name for shard in known for name in shard.sources]
    return GroupNumbers(
        [prompt_id for shard in known for prompt_id in shard.prompt_ids],
        np.concatenate([shard.rewards for shard in known]),
        np.concatenate([shard.lengths for shard in known]),
        np.concatenate([shard.num_unique for shard in known]),
        sources if len(sources) == sum(map(len, known)) else [],
    )


def _numbers_of(table: pa.Table) -> GroupNumbers | None:
    """None where the columns are no rectangle of rewards and completions."""
    lists = [name for name in (*_COLUMNS[1:], _TEXTS) if name in table.column_names]
    if len(table) == 0 or "rewards" not in lists or not all(map(_is_lists, map(table.column, lists))):
        return None
    sizes = {size for name in lists for size in pc.unique(pc.list_value_length(table[name])).to_pylist()}
    if len(sizes) > 1 or not sizes.isdisjoint({0, None}) or table["prompt_id"].null_count:
        return None
    ids, rewards = _flat(table["completion_token_ids"]), _flat(table["rewards"])
    if not (
        _is_lists(ids) and pa.types.is_integer(ids.type.value_type) and pa.types.is_floating(rewards.type)
    ):
        return None
    if ids.null_count or ids.values.null_count:
        return None
    shape = len(table), sizes.pop()
    values = rewards.to_numpy(zero_copy_only=False).astype(np.float64).reshape(shape)
    lengths = pc.list_value_length(ids).to_numpy().astype(np.float64).reshape(shape)
    unique = _num_different(_as_bytes(ids), shape)
    unknown = lengths == 0
    if unknown.any():
        unique = np.where(unknown.any(1), _num_different(_flat(table[_TEXTS]), shape), unique)
    return GroupNumbers(
        table["prompt_id"].to_pylist(),
        np.where(np.isfinite(values), values, np.nan),
        np.where(unknown, np.nan, lengths),
        unique,
        table[SOURCE].to_pylist() if SOURCE in table.column_names else [],
    )


def _flat(lists: pa.ChunkedArray) -> pa.Array:
    return pc.list_flatten(lists.combine_chunks())


def _is_lists(array: pa.Array | pa.ChunkedArray) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type)


def _as_bytes(ids: pa.ListArray) -> pa.Array:
    """Each list of whole numbers as its bytes, which are equal where the numbers are."""
    values = ids.values.to_numpy()
    places = ids.offsets.to_numpy().astype(np.int64) * values.itemsize
    buffers = [None, pa.py_buffer(places), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ids), buffers)


def _num_different(values: pa.Array, shape: tuple[int, int]) -> np.ndarray:
    """How many different values each group has [b]."""
    codes = pc.dictionary_encode(values, null_encoding="encode").indices.to_numpy().reshape(shape)
    codes = np.sort(codes, axis=1)
    return 1 + (codes[:, 1:] != codes[:, :-1]).sum(1)
