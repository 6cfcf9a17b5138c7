"""Score a shard that is already on disk: only the rewards it lacks, and the aggregate anew."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from nonpareil.files import jsonable
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.store import (
    REWARD_PREFIX,
    REWARD_TYPE,
    ShardNotes,
    narrow_rewards,
    notes_of,
    read_table,
    to_groups,
    with_notes,
    write_table,
)
from nonpareil.rollouts.summaries import ShardSummary


def reward_settings(reward: CombinedReward) -> dict[str, Any]:
    """What each column would be scored with, by name, as it reads back from JSON."""
    pairs = zip(reward.names, reward.rewards, strict=True)
    return {name: jsonable({**one.describe(), **reward.reading()}) for name, one in pairs}


def is_scored(
    notes: ShardNotes, settings: Mapping[str, Any], weights: Mapping[str, float], completions: int
) -> bool:
    """Whether a shard of so many completions already has these rewards, scored so and weighted so."""
    return not stale_names(notes, settings, completions) and notes.aggregate == weights


def shards_to_score(
    shards: Sequence[ShardSummary | None],
    settings: Mapping[str, Any],
    weights: Mapping[str, float],
    completions: Sequence[int],
) -> list[int]:
    """The shards, by index, that are still to be drawn (None) or lack these rewards.

    Where there is one, also those of which an earlier version kept rewards in float32: they are widened, without
    being scored again, so that readers of the folder find one type.
    """
    todo = [
        shard is None or not is_scored(shard.notes, settings, weights, count)
        for shard, count in zip(shards, completions, strict=True)
    ]
    if any(todo):
        todo = [
            lacks or (shard is not None and shard.narrow) for lacks, shard in zip(todo, shards, strict=True)
        ]
    return [index for index, lacks in enumerate(todo) if lacks]


def stale_names(notes: ShardNotes, settings: Mapping[str, Any], completions: int) -> list[str]:
    """The rewards that a shard lacks, has from other settings, or has as nulls alone.

    A reward that gave nothing to a whole shard was most likely out of order (a server that was down), and
    nothing is lost by asking it again.
    """
    return [
        name
        for name, asked in settings.items()
        if notes.rewards.get(name) != asked or sum(notes.failures.get(name, {}).values()) >= completions
    ]


def score_shard(path: Path, reward: CombinedReward, settings: Mapping[str, Any]) -> int:
    """Give a shard its missing reward columns and the aggregate of the rewards asked for.

    Columns of other rewards stay. Returns how many groups the shard holds.

    Raises:
        DataError: a broken shard.
        RewardError: a reward that returns another number of scores than there are completions.
    """
    table = read_table(path)
    write_table(path, score_table(table, reward, settings))
    return len(table)


def score_table(table: pa.Table, reward: CombinedReward, settings: Mapping[str, Any]) -> pa.Table:
    """A shard's table with its missing reward columns and the aggregate; its notes say how they were made.

    Columns of an earlier version, in float32, become float64, so that all shards of a folder have one type.

    Raises:
        RewardError: as `score_shard`.
    """
    notes = notes_of(table.schema)
    groups = to_groups(table)
    sizes = [len(group) for group in groups]
    stale = stale_names(notes, settings, sum(sizes))
    if stale:
        scores = _score(reward, stale, ScoreRequest.of(groups))
        for name, values in scores.items():
            table = _with_column(table, REWARD_PREFIX + name, values.values, sizes)
            failures = Counter(reason for reason in values.failures if reason is not None)
            notes.rewards[name] = settings[name]
            notes.failures[name] = dict(failures)
    for name in narrow_rewards(table.schema):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(REWARD_TYPE))
    # Of the stored values, not of those just scored: a later change of weights starts from these.
    stored = {name: _flat(table[REWARD_PREFIX + name].to_pylist()) for name in reward.names}
    table = _with_column(table, "rewards", reward.aggregate(stored), sizes)
    notes = replace(notes, aggregate=dict(zip(reward.names, reward.weights, strict=True)))
    return with_notes(table, notes)


def _score(reward: CombinedReward, stale: list[str], request: ScoreRequest) -> dict[str, Scores]:
    if stale == list(reward.names):
        scores = reward.score_each(request)  # all at once, so that the async ones are awaited together
    else:
        scores = {name: reward.score_one(name, request) for name in stale}
    return {name: _with_reasons(one) for name, one in scores.items()}


def _with_reasons(scores: Scores) -> Scores:
    """A reason for every null, since nulls are counted by them."""
    pairs = zip(scores.values, scores.failures, strict=True)
    return Scores(scores.values, [why or ("no reason given" if v is None else None) for v, why in pairs])


def _with_column(
    table: pa.Table, name: str, values: Sequence[float | None], sizes: Sequence[int]
) -> pa.Table:
    rows, flat = [], iter(values)
    for size in sizes:
        rows.append([next(flat) for _ in range(size)])
    column = pa.array(rows, REWARD_TYPE)
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    # Reward columns stand together, the aggregate last of them.
    own = [
        i
        for i, known in enumerate(table.column_names)
        if known == "logprobs" or known.startswith(REWARD_PREFIX)
    ]
    return table.add_column(own[-1] + 1, name, column)


def _flat(lists: list[list[Any]]) -> list[Any]:
    return [value for values in lists for value in values]
