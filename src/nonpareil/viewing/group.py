"""One group as its page shows it: every completion, ranked, with what is known of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from nonpareil.errors import DataError
from nonpareil.records import Group
from nonpareil.rollouts.store import read_table, to_groups
from nonpareil.viewing.index import GroupIndex
from nonpareil.viewing.shards import Stamp, stamp_of
from nonpareil.viewing.texts import Part, difference

MOST_TOKENS_SHOWN = 2000
BANDS = (-0.1, -0.7, -2.3, -4.6)
"""Log-probs, nats, that bound the shades of tokens: probabilities .9, .5, .1 and .01."""


@dataclass(frozen=True)
class Token:
    """One sampled token."""

    text: str
    """Its id, or what a tokenizer has for it."""
    logprob: float | None
    band: int
    """0 likely to 4 unlikely; 5 where its log-prob is not known."""


@dataclass(frozen=True)
class Ranked:
    """One completion in the order of the rewards."""

    rank: int | None
    """1 for the best; those with equal rewards share one. None without a reward."""
    place: int
    """As drawn, from 0."""
    text: str
    reward: float | None
    rewards: dict[str, float | None]
    finish_reason: str | None
    num_tokens: int | None
    logprob: float | None
    """Nats, summed over the completion."""
    tokens: list[Token]
    more_tokens: int
    """How many are not shown."""


@dataclass(frozen=True)
class Contrast:
    """The best and the worst completion, word by word; `sides` is None where they are too long for that."""

    winner: Ranked
    loser: Ranked
    sides: tuple[list[Part], list[Part]] | None


def read_group(index: GroupIndex, shard: str, row: int) -> Group:
    """A group by its file and row, from the file as it is now.

    Raises:
        DataError: no such file or row, or the file is damaged.
    """
    path = index.path_of(shard)
    stamp = None if path is None else stamp_of(path)
    if path is None or stamp is None:
        raise DataError(
            f"no file is called {shard!r} here; it may have been written anew: look at the table again"
        )
    table = _table(path, stamp)
    if not 0 <= row < len(table):
        raise DataError(f"{shard} has no row {row}: it has {len(table)}")
    group = to_groups(table.slice(row, 1))[0]
    if not isinstance(group.completions, list):
        raise DataError(f"{shard}, row {row}: its completions are null")
    return group


@lru_cache(maxsize=2)
def _table(path: Path, stamp: Stamp) -> pa.Table:
    """A file, whole to the last bit; `stamp` says of which moment."""
    return read_table_of_any(path)


def read_table_of_any(path: Path) -> pa.Table:
    """As `store.read_table`; of files by others too, which may lack ids, log-probs or how completions ended."""
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    lacking = [
        name
        for name in ("prompt_token_ids", "completion_token_ids", "finish_reasons", "logprobs")
        if name not in names
    ]
    if not lacking:
        return read_table(path)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def ranked(group: Group, reward: str | None, vocabulary: Any = None) -> list[Ranked]:
    """A group's completions, best first under a reward ("" is the aggregate), those without one last.

    `vocabulary` turns ids into texts of tokens.
    """
    size = len(group)
    values = _rewards(group, reward)
    known = sorted((value for value in values if value is not None), reverse=True)
    order = sorted(range(size), key=lambda j: (values[j] is None, -(values[j] or 0.0), j))
    found = []
    for j in order:
        value = values[j]
        ids, logprobs = (_at(each, j) for each in (group.completion_token_ids, group.logprobs))
        found.append(
            Ranked(
                rank=None if value is None else known.index(value) + 1,
                place=j,
                text=group.completions[j] or "",
                reward=value,
                rewards={name: _at(each, j) for name, each in group.rewards_by_name.items()},
                finish_reason=_at(group.finish_reasons, j),
                num_tokens=len(ids) if ids else None,
                logprob=math.fsum(logprobs) if logprobs and len(logprobs) == len(ids or ()) else None,
                tokens=_tokens((ids or [])[:MOST_TOKENS_SHOWN], logprobs, vocabulary),
                more_tokens=max(0, len(ids or ()) - MOST_TOKENS_SHOWN),
            )
        )
    return found


def _rewards(group: Group, reward: str | None) -> list[float | None]:
    given = None if reward is None else group.rewards if reward == "" else group.rewards_by_name.get(reward)
    return [_at(given, j) for j in range(len(group))]


def _at(values: Sequence[Any] | None, place: int) -> Any:
    return values[place] if values is not None and place < len(values) else None


def _tokens(ids: Sequence[int], logprobs: Sequence[float] | None, vocabulary: Any) -> list[Token]:
    texts = [str(each) for each in ids] if vocabulary is None else vocabulary(ids)
    found = []
    for place, text in enumerate(texts):
        logprob = _at(logprobs, place)
        band = len(BANDS) + 1 if logprob is None else sum(logprob < bound for bound in BANDS)
        found.append(Token(text, logprob, band))
    return found


def contrast(
    completions: Sequence[Ranked], winner: int | None = None, loser: int | None = None
) -> Contrast | None:
    """The best and the worst, or two that are named by the places they were drawn at; None without two.

    Where no reward tells two apart there is no winner, unless they are named.

    Raises:
        DataError: a place that is none.
    """
    by_place = {each.place: each for each in completions}
    for place in (winner, loser):
        if place is not None and place not in by_place:
            raise DataError(f"the group has no completion {place}; it has {len(by_place)}, from 0")
    scored = [each for each in completions if each.reward is not None]
    best = by_place[winner] if winner is not None else scored[0] if scored else None
    worst = by_place[loser] if loser is not None else scored[-1] if scored else None
    if best is None or worst is None or best is worst:
        return None
    if winner is None and loser is None and best.reward == worst.reward:
        return None
    return Contrast(best, worst, difference(best.text, worst.text))


def messages_of(prompt: Any) -> list[dict[str, str]]:
    """The prompt's turns; a plain prompt is one turn without a role."""
    if isinstance(prompt, str) or prompt is None:
        return [{"role": "", "content": prompt or ""}]
    return [{key: _as_text(turn.get(key)) for key in ("role", "content")} for turn in prompt]


def _as_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)
