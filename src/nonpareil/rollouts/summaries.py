"""What a shard holds, counted from its footer, its ids and its small columns: completions are not read for that."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nonpareil.constant_rewards import RewardSpread
from nonpareil.rollouts.checksum import seal_holds, sealed_footer
from nonpareil.rollouts.columns import OWN_NAMES, REWARD_PREFIX
from nonpareil.rollouts.store import ShardNotes, narrow_rewards, notes_of, read_table

_SMALL = ("prompt_id", "finish_reasons", "rewards")


@dataclass(frozen=True)
class ShardSummary:
    """One shard, counted."""

    notes: ShardNotes
    prompt_ids: list[str]
    prompts: int
    group_sizes: set[int]
    """How many completions its groups have."""
    completions: int
    tokens: int
    finish_reasons: dict[str, int]
    rewards: int
    """Completions whose aggregate is not null."""
    spread: RewardSpread
    """Of every reward that the notes name."""
    narrow: bool
    """Whether an earlier version wrote its rewards, in float32."""

    def without_ids(self) -> "ShardSummary":
        """The counts alone, to be held for every shard of a run."""
        return replace(self, prompt_ids=[], notes=replace(self.notes, draw={}))


def summary_of(path: Path) -> ShardSummary:
    """Count a shard. What is read is checked to the last bit, the footer by its checksum, columns by their pages'.

    A file of an earlier version, which has no checksum of its footer, is checked whole.

    Raises:
        DataError: as `store.read_table`.
    """
    try:
        if sealed_footer(path) is not None:
            summary = _from_small_columns(path)
        else:
            content = path.read_bytes()
            summary = _from_small_columns(pa.BufferReader(content)) if seal_holds(content) else None
    except OSError:
        summary = None
    return _counted(read_table(path)) if summary is None else summary


def _from_small_columns(file_or_path: Any) -> ShardSummary | None:
    """None where the footer and small columns do not say it all, each the same as the others."""
    try:
        with pq.ParquetFile(file_or_path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if not {*OWN_NAMES} - {"rewards"} <= {*names}:
                return None
            small = [name for name in names if name in _SMALL or name.startswith(REWARD_PREFIX)]
            table = file.read(columns=small, use_threads=False)
            completions = _values(file.metadata, "completions.list.element")
            tokens = _values(file.metadata, "completion_token_ids.list.element.list.element")
    except (pa.ArrowException, OSError, ValueError):
        return None
    if completions is None or tokens is None or completions != _inner_length(table["finish_reasons"]):
        return None
    return _summary(table, table["finish_reasons"], completions, tokens)


def _values(metadata: pq.FileMetaData, column: str) -> int | None:
    """How many values a column of lists has, nulls and empty lists not counted; None where the footer is silent."""
    count = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        by_path = {(chunk := group.column(i)).path_in_schema: chunk for i in range(group.num_columns)}
        found = by_path[column].statistics if column in by_path else None
        if found is None or not found.has_null_count:
            return None
        count += found.num_values
    return count


def _counted(table: pa.Table) -> ShardSummary:
    tokens = _inner_length(pc.list_flatten(table["completion_token_ids"]))
    return _summary(table, table["completions"], _inner_length(table["completions"]), tokens)


def _summary(table: pa.Table, sized: pa.ChunkedArray, completions: int, tokens: int) -> ShardSummary:
    """`sized`: a column with one value per completion."""
    notes = notes_of(table.schema)
    reasons = pc.list_flatten(table["finish_reasons"])
    rewards = 0
    if "rewards" in table.column_names:
        values = pc.list_flatten(table["rewards"])
        rewards = len(values) - values.null_count
    return ShardSummary(
        notes=notes,
        prompt_ids=table["prompt_id"].to_pylist(),
        prompts=len(table),
        group_sizes=set(pc.unique(pc.list_value_length(sized)).to_pylist()),
        completions=completions,
        tokens=tokens,
        finish_reasons={r: pc.sum(pc.equal(reasons, r)).as_py() or 0 for r in ("stop", "length")},
        rewards=rewards,
        spread=_spread(table, notes.rewards),
        narrow=bool(narrow_rewards(table.schema)),
    )


def _spread(table: pa.Table, names: Iterable[str]) -> RewardSpread:
    spread = RewardSpread()
    for name in names:
        column = table[REWARD_PREFIX + name]
        values = pc.list_flatten(column)
        sizes = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(sizes) != 1 or not sizes[0] or pc.any(pc.is_nan(values)).as_py():
            spread.add(name, column.to_pylist())
            continue
        groups = values.to_numpy(zero_copy_only=False).astype(float).reshape(len(column), sizes[0])
        known = (~np.isnan(groups)).sum(1) > 1
        groups = groups[known]  # of nulls alone there is neither most nor least
        spread.count(name, len(groups), bool((np.nanmax(groups, 1) > np.nanmin(groups, 1)).any()))
    return spread


def _inner_length(lists: pa.ChunkedArray) -> int:
    return len(pc.list_flatten(lists))
