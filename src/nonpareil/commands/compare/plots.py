"""The comparison's pictures: every method on the (KL, win rate) plane, and under the reward it never saw."""

import math
from collections.abc import Sequence
from itertools import cycle, islice

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nonpareil.commands.compare.equal_win_rate import INTERPOLATION
from nonpareil.commands.compare.over_seeds import OverSeeds
from nonpareil.commands.compare.results import ComparisonReport, MethodRow
from nonpareil.evaluation.plots import POLICY_COLOURS, legend_label, limit_line, mark_best_of_n, new_figure
from nonpareil.evaluation.worth import PlanePoint
from nonpareil.terminal import printable

# Okabe and Ito's first, then Tol's muted ones; markers tell methods apart where colours do not.
COLOURS = (*POLICY_COLOURS, "#332288", "#882255", "#117733", "#999933", "#661100")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "h")
_TICKS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)
_TICK_DISTANCE = 0.06  # of the axis, so that labels do not run together


def pareto_figure(report: ComparisonReport) -> Figure:
    """KL spent against win rate: the limit of any policy, best-of-N, each method and its way there.

    Large markers are means over seeds with one standard deviation, pale ones the seeds, the line runs through
    the checkpoints from the reference, a broken one through the policies between them and beyond.
    """
    with new_figure(9.4, 5.6) as (figure, (axes,)):
        right = _right_edge(report)
        limit_line(axes, report.frontier, right)
        mark_best_of_n(axes, report.best_of_n_points, right, "*", (-5, 2))
        axes.set_ylim(_lowest(report, gold=False), 1.0)
        for row, colour, marker in _styled(report.methods):
            _way(axes, row, "win_rate", colour)
            _interpolation(axes, report, row.name, colour)
            _final(axes, row, "win_rate", colour, marker)
        _square_root_axis(axes, right)
        axes.set(ylabel="win rate against the reference", title="What each method gained, and what it cost")
        figure.legend(loc="outside right upper")
    return figure


def gold_figure(report: ComparisonReport) -> Figure:
    """The same plane twice: under the reward that was trained on, and under the one that was not.

    Where the left rises and the right falls, the reward is over-optimised.
    """
    with new_figure(12.0, 5.0, columns=2) as (figure, (left, right)):
        edge = _right_edge(report)
        lowest = min(_lowest(report, gold=False), _lowest(report, gold=True))
        mark_best_of_n(left, report.best_of_n_points, edge, "*", (-5, 2))
        panels = (
            (left, "win_rate", report.frontier, "Trained reward"),
            (right, "gold_win_rate", report.gold_frontier, f"Gold reward: {printable(report.gold or '')}"),
        )
        for axes, key, frontier, title in panels:
            limit_line(axes, frontier, edge)
            axes.set_ylim(lowest, 1.0)
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


def _way(axes: Axes, row: MethodRow, key: str, colour: str) -> None:
    """From the reference through the checkpoints to the final mean; checkpoints without the metric are left out."""
    points = [(0.0, 0.5)]
    points += [(point.kl, getattr(point, key)) for point in row.path if getattr(point, key) is not None]
    kl, rate = row.metrics["kl"], row.metrics[key]
    if kl and rate and kl.values and rate.values:
        points.append((kl.mean, rate.mean))
    x, y = [max(kl, 0.0) for kl, _ in points], [rate for _, rate in points]
    axes.plot(x, y, color=colour, linewidth=1, alpha=0.6, zorder=3)
    axes.plot(x[1:-1], y[1:-1], "o", color=colour, markersize=3, alpha=0.8, zorder=3)


def _interpolation(axes: Axes, report: ComparisonReport, name: str, colour: str) -> None:
    """From the reference through the policies of all strengths, where some were measured."""
    points = _strengths(report, name)
    if points:
        x, y = [0.0, *(max(point.kl, 0.0) for point in points)], [0.5, *(point.win_rate for point in points)]
        axes.plot(x, y, color=colour, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6, zorder=3)
        axes.plot(x[1:], y[1:], "x", color=colour, markersize=3.5, alpha=0.8, zorder=3)


def _strengths(report: ComparisonReport, name: str | None = None) -> list[PlanePoint]:
    """The measured points of a method's interpolation, or of all methods'."""
    paths = report.equal_win_rate.paths if report.equal_win_rate else ()
    of_path = [path for path in paths if path.path == INTERPOLATION and name in (None, path.method)]
    return [point for path in of_path for point in path.points]


def _final(axes: Axes, row: MethodRow, key: str, colour: str, marker: str) -> None:
    kl, rate = row.metrics["kl"], row.metrics[key]
    if not (kl and rate and kl.values and rate.values):
        return
    if len(kl.values) == len(rate.values):  # else they are not of the same seeds
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


def _sd(metric: OverSeeds, floor: float = -math.inf) -> list[list[float]]:
    """Error bars of one standard deviation, cut at `floor`."""
    sd = metric.sd or 0.0
    return [[max(min(sd, metric.mean - floor), 0.0)], [sd]]


def _right_edge(report: ComparisonReport) -> float:
    spent = [point.kl for row in report.methods for point in row.path]
    spent += [point.kl for point in _strengths(report)]
    for row in report.methods:
        kl = row.metrics["kl"]
        spent += [] if kl is None else [*kl.values, kl.mean + (kl.sd or 0.0)]
    return max(1.5, 1.15 * max(filter(math.isfinite, spent), default=0.0))


def _lowest(report: ComparisonReport, *, gold: bool) -> float:
    key = "gold_win_rate" if gold else "win_rate"
    rates = [getattr(point, key) for row in report.methods for point in row.path]
    rates += [] if gold else [point.win_rate for point in _strengths(report)]
    for row in report.methods:
        if (rate := row.metrics[key]) is not None:
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
