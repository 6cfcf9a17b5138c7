"""What a folder of groups is worth and made of: sums by SQL, and best-of-N by the yardstick's own formulas."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nonpareil.errors import NonpareilError
from nonpareil.records import GroupNumbers
from nonpareil.viewing.index import GroupIndex

if TYPE_CHECKING:
    from nonpareil.evaluation.curve import CurveReport

BINS = 24


@dataclass(frozen=True)
class Totals:
    """Counts over all groups, and means over those that tell; None where none does."""

    groups: int
    completions: int
    sizes: tuple[tuple[int, int], ...]
    """(completions of a group, how many groups have so many), the commonest first."""
    tokens: int | None
    mean_length: float | None
    cut: int | None
    mean_different: float | None
    repeated: int
    """Groups that repeat another's prompt_id."""
    scored: int = 0
    """Groups that have a reward at all."""
    nulls: int = 0
    """Rewards that failed, in scored groups."""
    values: int = 0
    mean: float | None = None
    mean_best: float | None = None
    mean_spread: float | None = None
    """Standard deviation within a group."""
    equal: int = 0
    """Groups whose rewards are all equal: nothing to choose between."""
    tied_best: int = 0
    """Groups where several completions share the best reward, though not all rewards are equal."""


def totals_of(index: GroupIndex, reward: str | None) -> Totals:
    """Count a folder's groups under a reward."""
    cursor, table = index.cursor(), index.table
    names: tuple[str, ...] = (
        "groups",
        "completions",
        "tokens",
        "mean_length",
        "cut",
        "mean_different",
        "repeated",
    )
    row = cursor.execute(
        f"SELECT count(*), coalesce(sum(m), 0), sum(list_sum(lengths)), sum(list_sum(lengths)) / "
        f"sum(list_count(lengths)), sum(cut), avg(different), count(*) - count(DISTINCT prompt_id) FROM {table}"
    ).fetchone()
    sizes = cursor.execute(
        f"SELECT m, count(*) AS groups FROM {table} GROUP BY m ORDER BY groups DESC, m DESC"
    ).fetchall()
    found: dict[str, Any] = dict(zip(names, row, strict=True)) | {"sizes": tuple(sizes)}
    if reward is not None:
        r = index.rewards[reward]
        told = f"list_count({r}) > 1"
        equal = f"{told} AND list_max({r}) = list_min({r})"
        tied = f"len(list_filter({r}, lambda x: x = list_max({r}))) > 1"
        names = ("scored", "nulls", "values", "mean", "mean_best", "mean_spread", "equal", "tied_best")
        row = cursor.execute(
            f"SELECT count({r}), coalesce(sum(len({r}) - list_count({r})), 0), coalesce(sum(list_count({r})), 0), "
            f"avg(list_avg({r})), avg(list_max({r})), avg(list_stddev_samp({r})), "
            f"count(*) FILTER ({equal}), count(*) FILTER ({tied} AND NOT ({equal})) FROM {table}"
        ).fetchone()
        found |= dict(zip(names, row, strict=True))
    return Totals(**found)


def histogram(index: GroupIndex, reward: str) -> list[tuple[float, float, int]]:
    """(from, to, how many) of the gains of the best, in equal bins; empty where no group has one."""
    r = index.rewards[reward]
    gains = index.cursor().execute(
        f"SELECT list_max({r}) - list_avg({r}) AS gain FROM {index.table} WHERE gain IS NOT NULL"
    )
    values = np.array([row[0] for row in gains.fetchall()], float)
    if not len(values):
        return []
    counts, edges = np.histogram(values, bins=BINS if np.ptp(values) > 0 else 1)
    return [(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]


def numbers_of(index: GroupIndex, reward: str) -> tuple[GroupNumbers, str]:
    """The scored groups of the commonest size, for a best-of-N curve, and which groups are not among them."""
    r, table = index.rewards[reward], index.table
    cursor = index.cursor()
    sizes = cursor.execute(
        f"SELECT m, count(*) FROM {table} WHERE len({r}) = m AND m > 0 GROUP BY m ORDER BY count(*) DESC, m DESC"
    ).fetchall()
    total = cursor.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    size, count = sizes[0] if sizes else (0, 0)
    found = (
        index.cursor()
        .sql(
            f"SELECT prompt_id, {r} AS rewards, lengths, different FROM {table} WHERE len({r}) = m AND m = ? "
            f"QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY shard, row) = 1 ORDER BY shard, row",
            params=[size],
        )
        .to_arrow_table()
    )
    left_out = (
        ""
        if count == total
        else f"{count} of {total} groups are scored and have {size} completions; this is the curve of those."
    )
    return (
        GroupNumbers(
            found["prompt_id"].to_pylist(),
            _rectangle(found["rewards"], size),
            _rectangle(found["lengths"], size),
            found["different"].to_numpy().astype(float),
        ),
        left_out,
    )


def _rectangle(column: Any, size: int) -> np.ndarray:
    """Lists of one size as [b, size]; NaN for nulls, and all of it for a null list."""
    import pyarrow.compute as pc

    count, column = len(column), column.combine_chunks()
    known = pc.list_value_length(column).fill_null(0).to_numpy() == size
    values = np.full((count, size), np.nan)
    if known.any():
        kept = column.filter(known)
        values[known] = pc.list_flatten(kept).to_numpy(zero_copy_only=False).astype(float).reshape(-1, size)
    return values


@dataclass
class Worth:
    """A best-of-N curve, or why there is none."""

    curve: "CurveReport | None" = None
    reason: str = ""
    left_out: str = ""
    version: int = -1
    """Of the index that it is of."""
    ended: float = 0.0
    seconds: float = 0.0


@dataclass
class Worths:
    """The curves of one folder by reward, each made in a thread of its own and kept until groups come."""

    index: GroupIndex
    made: int = 0
    """How many curves were made so far."""
    _asked: set[str] = field(default_factory=set)
    _known: dict[str, Worth] = field(default_factory=dict)
    _running: dict[str, threading.Thread] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, reward: str, patience: float = 0.0) -> tuple[Worth | None, bool]:
        """The newest curve, if there is one, and whether a newer one is to come; waits so many seconds for it.

        None is made before all files that are there are read. Of a folder that grows it is made anew at most a
        tenth of the time.
        """
        with self._lock:
            self._asked.add(reward)
            known, thread = self._known.get(reward), self._running.get(reward)
            stale = known is None or known.version != self.index.version
            whole = self.index.files_read >= self.index.files
            rested = known is None or time.monotonic() - known.ended > max(2.0, 10 * known.seconds)
            if stale and rested and whole and (thread is None or not thread.is_alive()):
                thread = threading.Thread(
                    target=self._make, args=(reward,), name=f"curve {reward}", daemon=True
                )
                self._running[reward] = thread
                thread.start()
        if thread is not None:
            thread.join(patience)
        with self._lock:
            known = self._known.get(reward)
        return known, thread is not None and thread.is_alive()

    def renew(self) -> None:
        """Make those anew that pages have asked for, where it is time."""
        for reward in sorted(self._asked & {*self.index.rewards}):
            self.ask(reward)

    def _make(self, reward: str) -> None:
        begun, version = time.monotonic(), self.index.version
        worth = Worth(version=version)
        import duckdb

        try:
            from nonpareil.evaluation.curve import best_of_n_report

            numbers, worth.left_out = numbers_of(self.index, reward)
            if len(numbers):
                worth.curve = best_of_n_report(numbers)
            else:
                worth.reason = "no group is scored yet"
        except (NonpareilError, duckdb.Error) as error:
            worth.reason = str(error)
        worth.ended = time.monotonic()
        worth.seconds = worth.ended - begun
        with self._lock:
            self._known[reward] = worth
            self.made += 1


def shown_points(curve: "CurveReport") -> Sequence[Any]:
    """The points of a curve that a table has."""
    wanted = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, curve.points[-1].n, curve.recommended_n()}
    return [point for point in curve.points if point.n in wanted]
