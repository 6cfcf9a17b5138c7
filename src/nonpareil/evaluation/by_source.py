"""The metrics apart for each dataset of a mixture, and what best-of-N is worth on each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from rich.table import Table
from rich.text import Text
from torch import Tensor

from nonpareil.console import styled
from nonpareil.evaluation.groups import MatchedGroups, rewards_of
from nonpareil.evaluation.intervals import FEWEST_PROMPTS, Bootstrap
from nonpareil.evaluation.numbers import MISSING, bracket, number
from nonpareil.maths.bootstrap import Interval, Scale
from nonpareil.maths.win_rate import pairwise
from nonpareil.records import SOURCE, Group

MOST_IN_TERMINAL = 20


@dataclass(frozen=True)
class SourceMetrics:
    """A policy against its reference on the prompts of one dataset; intervals are over those prompts.

    The evaluation's own estimate is the mean of the sources' estimates, weighted by the prompts each rests on.
    """

    source: str
    """What the prompts' column `dataset_source` says."""
    num_prompts: int
    win_rate: Interval | None
    """Ties one half; None where no prompt of the source is scored on both sides, as of the means."""
    policy_mean: Interval | None
    """Mean reward; a success rate where the evaluation's is one."""
    reference_mean: Interval | None
    kl: Interval
    """KL(policy || reference), nats per completion."""


@dataclass(frozen=True)
class SourceCurve:
    """Best-of-N on the prompts of one dataset, of those that the whole curve rests on."""

    source: str
    num_prompts: int
    first: Interval
    """Mean reward of one draw; a success rate where the curve's is one."""
    last: Interval
    """Expected reward of the best of the curve's last N."""
    win_rate: Interval | None
    """Against one further draw, at the last N where the curve has one; None where it has none at all."""


def sources_of(groups: Sequence[Group]) -> list[str] | None:
    """Of which dataset each group's prompt is; None where that is not said of all, or is the same of all."""
    return told_apart([group.columns.get(SOURCE) for group in groups])


def told_apart(named: Sequence[object]) -> list[str] | None:
    """The names, where all are texts and there are two at least."""
    names = [name for name in named if isinstance(name, str)]
    return names if len(names) == len(named) and len(set(names)) > 1 else None


def metrics_by_source(
    matched: MatchedGroups, kl: Float[Tensor, " b"], zero_one: bool, bootstrap: Bootstrap
) -> tuple[SourceMetrics, ...]:
    """Of the matched groups, by the source's name; empty where their prompts are of no mixture.

    Args:
        matched: both sides' groups, row by row.
        kl: of each prompt, in their order.
        zero_one: whether the reward is a success rate.
        bootstrap: of the intervals.
    """
    names = sources_of(matched.policy)
    if names is None:
        return ()
    sides = rewards_of(matched.policy), rewards_of(matched.reference)
    scored = sides[0].isfinite().any(1) & sides[1].isfinite().any(1)
    ours, theirs = (torch.where(scored, side.nanmean(1), torch.nan) for side in sides)
    win, scale = pairwise(*sides).win_rate, _scale(zero_one)
    return tuple(
        SourceMetrics(
            source=name,
            num_prompts=int(rows.sum()),
            win_rate=bootstrap.mean_or_none(win[rows], "share"),
            policy_mean=bootstrap.mean_or_none(ours[rows], scale),
            reference_mean=bootstrap.mean_or_none(theirs[rows], scale),
            kl=bootstrap.mean(kl[rows], "positive"),
        )
        for name, rows in _rows_of(names)
    )


def curve_by_source(
    names: Sequence[str] | None,
    reward_of_best: Float[Tensor, "b n"],
    win_rate: Float[Tensor, "b n"],
    zero_one: bool,
    bootstrap: Bootstrap,
) -> tuple[SourceCurve, ...]:
    """Of the prompts that a curve rests on, by the source's name; empty without `names`, their sources in order.

    Both tensors have a column for each N; of win rates one with a NaN is none.
    """
    scale, wins = _scale(zero_one), [column for column in win_rate.T if not column.isnan().any()]
    return tuple(
        SourceCurve(
            source=name,
            num_prompts=int(rows.sum()),
            first=bootstrap.mean(reward_of_best[rows, 0], scale),
            last=bootstrap.mean(reward_of_best[rows, -1], scale),
            win_rate=bootstrap.mean(wins[-1][rows], "share") if wins else None,
        )
        for name, rows in _rows_of(told_apart(names or []) or [])
    )


def _rows_of(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for each in sorted(set(names)):
        yield each, torch.tensor([name == each for name in names])


def _scale(zero_one: bool) -> Scale:
    return "share" if zero_one else "real"


def source_headings(zero_one: bool) -> tuple[str, ...]:
    """Over the columns of `source_cells`."""
    mean = "success rate" if zero_one else "reward"
    return "dataset_source", "prompts", "win rate", f"{mean}, policy", f"{mean}, reference", "KL, nats"


def source_cells(sources: Sequence[SourceMetrics]) -> list[tuple[str, ...]]:
    """A row of texts for each source."""
    return [(one.source, str(one.num_prompts), *map(_with_bracket, _intervals(one))) for one in sources]


def curve_headings(reward_name: str, last: int, last_win: int | None) -> tuple[str, ...]:
    """Over the columns of `curve_cells`; `last_win`: the last N with a win rate."""
    at = "" if last_win is None else f", N = {last_win}"
    return "dataset_source", "prompts", f"{reward_name}, N = 1", f"{reward_name}, N = {last}", f"win rate{at}"


def curve_cells(sources: Sequence[SourceCurve]) -> list[tuple[str, ...]]:
    """A row of texts for each source."""
    return [
        (one.source, str(one.num_prompts), *map(_with_bracket, (one.first, one.last, one.win_rate)))
        for one in sources
    ]


def metrics_table(sources: Sequence[SourceMetrics], zero_one: bool) -> Table:
    """An evaluation's, for the terminal."""
    return source_table(source_headings(zero_one), source_cells(sources), "report.json")


def source_table(headings: Sequence[str], cells: Sequence[Sequence[str]], where: str) -> Table:
    """Rows of texts for the terminal, the sources with the most prompts where there are many.

    `where` is the file in which all of them are.
    """
    table = Table(title="By dataset_source", title_justify="left", caption_justify="left")
    table.add_column(headings[0], overflow="fold")
    for name in headings[1:]:
        table.add_column(name, justify="right")
    shown = sorted(cells, key=lambda row: -int(row[1]))[:MOST_IN_TERMINAL]
    for row in cells:
        if row in shown:
            source, *numbers = row
            table.add_row(styled(source, ""), *(_lines(cell) for cell in numbers))
    said = [f"The {len(shown)} largest of {len(cells)}; {where} has all."] if len(shown) < len(cells) else []
    if any(int(row[1]) < FEWEST_PROMPTS for row in shown):
        said.append(f"Intervals over fewer than {FEWEST_PROMPTS} prompts are rough.")
    table.caption = " ".join(said)
    return table


def _lines(cell: str) -> Text:
    """The estimate, and under it the interval: side by side, several would not fit into a terminal."""
    return Text(cell.replace(" [", "\n["), no_wrap=True, justify="right")


def _intervals(one: SourceMetrics) -> tuple[Interval | None, ...]:
    return one.win_rate, one.policy_mean, one.reference_mean, one.kl


def _with_bracket(interval: Interval | None) -> str:
    if interval is None:
        return MISSING
    ends = bracket(interval)
    return number(interval.estimate) + ("" if ends == MISSING else f" {ends}")
