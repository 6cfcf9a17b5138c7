"""Two folders of groups of the same prompts, matched by prompt_id."""

from dataclasses import dataclass
from typing import Any

from nonpareil.errors import DataError
from nonpareil.viewing.index import GroupIndex
from nonpareil.viewing.query import PAGE, PREVIEW

ORDERS = {
    "up": ("difference DESC NULLS LAST", "where the second is better first"),
    "down": ("difference ASC NULLS LAST", "where the first is better first"),
    "drawn": ("a.shard, a.row", "as drawn"),
}


@dataclass(frozen=True)
class Matched:
    """The prompts that both folders have, under a reward of the same name."""

    rows: list[dict[str, Any]]
    """`prompt`; `shard`, `row`, `mean` and `best` of either side; `difference` of the means, second less first."""
    count: int
    mean_difference: float | None
    better: int
    """Prompts where the second's mean is higher."""
    worse: int
    equal: int
    unknown: int
    """Prompts where a side has no reward."""
    page: int = 1

    @property
    def pages(self) -> int:
        """How many there are; 1 at least."""
        return max(1, -(-self.count // PAGE))


def matched(first: GroupIndex, second: GroupIndex, reward: str, order: str = "up", page: int = 1) -> Matched:
    """The prompts of two folders side by side.

    Raises:
        DataError: a reward or an order that is none, or that a side lacks.
    """
    for index in (first, second):
        if reward not in index.rewards:
            raise DataError(
                f"no reward is called {reward!r} in {index.place}; both folders need one of that name"
            )
    if order not in ORDERS:
        raise DataError(f"order={order[:40]!r} must be one of {', '.join(ORDERS)}")
    a, b = f"a.{first.rewards[reward]}", f"b.{second.rewards[reward]}"
    copy = "row_number() OVER (PARTITION BY prompt_id ORDER BY shard, row) AS copy"
    joined = (
        f"FROM (SELECT *, {copy} FROM {first.table}) a JOIN (SELECT *, {copy} FROM {second.table}) b "
        "ON a.prompt_id = b.prompt_id AND a.copy = b.copy"
    )
    cursor = first.cursor()
    count, mean, better, worse, equal, unknown = cursor.execute(
        f"SELECT count(*), avg(d), count(*) FILTER (d > 0), count(*) FILTER (d < 0), count(*) FILTER (d = 0), "
        f"count(*) FILTER (d IS NULL) FROM (SELECT list_avg({b}) - list_avg({a}) AS d {joined})"
    ).fetchone()
    one, other = (f"{side}shard {side}row {side}mean {side}best".split() for side in ("", "other_"))
    names = ["prompt", *one, *other, "difference"]
    found = cursor.execute(
        f"SELECT left(a.prompt, {PREVIEW + 1}), a.shard, a.row, list_avg({a}), list_max({a}), b.shard, b.row, "
        f"list_avg({b}), list_max({b}), list_avg({b}) - list_avg({a}) AS difference {joined} "
        f"ORDER BY {ORDERS[order][0]}, a.shard, a.row LIMIT ? OFFSET ?",
        [PAGE, (page - 1) * PAGE],
    ).fetchall()
    rows = [dict(zip(names, row, strict=True)) for row in found]
    return Matched(rows, count, mean, better, worse, equal, unknown, page)
