"""The comparison's pictures: every method on the (KL, win rate) plane, and under the reward it never saw."""

import math
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nonpareil.evaluation.comparison import ComparisonReport, MethodRow, Statistic
from nonpareil.evaluation.plots import INK, POLICIES, REFERENCE, _figure, legend_label
from nonpareil.maths.best_of_n import kl_upper_bound, optimal_win_rate, win_rate
from nonpareil.terminal import printable

# Okabe and Ito's first, then Tol's muted ones; markers tell methods apart where colours do not.
COLOURS = (*POLICIES, "#332288", "#882255", "#117733", "#999933", "#661100")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")
_MARKED_N = (2, 4, 8, 16, 32, 64)
_TICKS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)
_TICK_DISTANCE = 0.06  # of the axis, so that labels do not run together


def pareto_figure(report: ComparisonReport) -> Figure:
    """KL spent against win rate: the limit of any policy, best-of-N, each method and its way there.

    Large markers are means over seeds with one standard deviation, pale ones the seeds, the line runs through
    the checkpoints from the reference.
    """
    with _figure(9.4, 5.6) as (figure, (axes,)):
        right = _right_edge(report)
        _limit(axes, right, _lowest(report, gold=False))
        _best_of_n(axes, right)
        for row, colour, marker in _styled(report.methods):
            _way(axes, row, "win_rate", colour)
            _final(axes, row, "win_rate", colour, marker)
        _square_root_axis(axes, right)
        axes.set(ylabel="win rate against the reference", title="What each method gained, and what it cost")
        figure.legend(loc="outside right upper")
    return figure


def gold_figure(report: ComparisonReport) -> Figure:
    """The same plane twice: under the reward that was trained on, and under the one that was not.

    Where the left rises and the right falls, the reward is over-optimised.
    """
    with _figure(12.0, 5.0, columns=2) as (figure, (left, right)):
        edge = _right_edge(report)
        lowest = min(_lowest(report, gold=False), _lowest(report, gold=True))
        _best_of_n(left, edge)
        panels = (
            (left, "win_rate", "Trained reward"),
            (right, "gold_win_rate", f"Gold reward: {printable(report.gold or '')}"),
        )
        for axes, key, title in panels:
            _limit(axes, edge, lowest)
            for row, colour, marker in _styled(report.methods):
                _way(axes, row, key, colour)
                _final(axes, row, key, colour, marker)
            _square_root_axis(axes, edge)
            axes.set(ylabel="win rate against the reference", title=title)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _styled(methods: Sequence[MethodRow]) -> list[tuple[MethodRow, str, str]]:
    # Ten colours and eleven markers: no pair repeats before 110 methods.
    count = len(methods)
    return list(zip(methods, islice(cycle(COLOURS), count), islice(cycle(MARKERS), count), strict=True))


def _limit(axes: Axes, right: float, lowest: float) -> None:
    """The best possible frontier, of any policy under any one reward, and the room above it."""
    kl = torch.linspace(0, right**0.5, 400, dtype=torch.float64).square()
    limit = optimal_win_rate(kl)
    axes.fill_between(kl, limit, 1.02, color="#f1f2f4", linewidth=0)
    axes.plot(kl, limit, color=INK, linewidth=1.4, label="best possible")
    axes.set_ylim(lowest, 1.0)


def _best_of_n(axes: Axes, right: float) -> None:
    """Best-of-N by the trained reward; named where no policy can be."""
    marked = [n for n in _MARKED_N if kl_upper_bound(n) <= right]
    points = [kl_upper_bound(n) for n in marked], [win_rate(n) for n in marked]
    axes.plot(*points, "*", color=REFERENCE, markersize=8, label="best-of-N", zorder=3)
    for n, x, y in zip(marked, *points, strict=True):
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate(f"N={n}", (x, y), (-5, 2), color=REFERENCE, fontsize=8, **place)


def _way(axes: Axes, row: MethodRow, key: str, colour: str) -> None:
    """From the reference through the checkpoints to the final mean; checkpoints without the figure are left out."""
    points = [(0.0, 0.5)]
    points += [(point.kl, getattr(point, key)) for point in row.path if getattr(point, key) is not None]
    kl, rate = row.figures["kl"], row.figures[key]
    if kl is not None and rate is not None:
        points.append((kl.mean, rate.mean))
    x, y = [max(kl, 0.0) for kl, _ in points], [rate for _, rate in points]
    axes.plot(x, y, color=colour, linewidth=1, alpha=0.6, zorder=3)
    axes.plot(x[1:-1], y[1:-1], "o", color=colour, markersize=3, alpha=0.8, zorder=3)


def _final(axes: Axes, row: MethodRow, key: str, colour: str, marker: str) -> None:
    kl, rate = row.figures["kl"], row.figures[key]
    if kl is None or rate is None:
        return
    axes.plot(
        [max(value, 0.0) for value in kl.values],
        rate.values,
        marker,
        color=colour,
        markersize=4.5,
        alpha=0.35,
        markeredgewidth=0,
        zorder=4,
    )
    axes.errorbar(
        [max(kl.mean, 0.0)],
        [rate.mean],
        xerr=_sd(kl, floor=0.0),
        yerr=_sd(rate),
        fmt=marker,
        color=colour,
        markersize=8,
        markeredgecolor="white",
        markeredgewidth=0.8,
        capsize=2.5,
        elinewidth=1.2,
        label=legend_label(row.name),
        zorder=5,
    )


def _sd(statistic: Statistic, floor: float = -math.inf) -> list[list[float]]:
    """Error bars of one standard deviation, cut at `floor`."""
    sd = statistic.sd or 0.0
    return [[max(min(sd, statistic.mean - floor), 0.0)], [sd]]


def _right_edge(report: ComparisonReport) -> float:
    spent = [point.kl for row in report.methods for point in row.path]
    for row in report.methods:
        kl = row.figures["kl"]
        spent += [] if kl is None else [*kl.values, kl.mean + (kl.sd or 0.0)]
    return max(1.5, 1.15 * max(filter(math.isfinite, spent), default=0.0))


def _lowest(report: ComparisonReport, *, gold: bool) -> float:
    key = "gold_win_rate" if gold else "win_rate"
    rates = [getattr(point, key) for row in report.methods for point in row.path]
    for row in report.methods:
        if (rate := row.figures[key]) is not None:
            rates += [*rate.values, rate.mean - (rate.sd or 0.0)]
    known = [rate for rate in rates if rate is not None and math.isfinite(rate)]
    return max(min([0.5, *known]) - 0.03, 0.0)


def _square_root_axis(axes: Axes, right: float) -> None:
    """KL in nats on a square-root axis: win rate leaves one half in proportion to it, so that small KLs part."""
    axes.set_xscale("function", functions=(lambda x: x.clip(0) ** 0.5, lambda x: x**2))
    ticks = [0.0]
    for tick in _TICKS:
        if tick <= right and (tick / right) ** 0.5 - (ticks[-1] / right) ** 0.5 > _TICK_DISTANCE:
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(0, right)
    axes.set_xlabel("KL from the reference, nats (square-root axis)")
