"""The report's pictures. Each function returns a figure; none touches pyplot's state or a display."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nonpareil.evaluation.curve import CurveReport
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.evaluation.worth import BestOfNPoint, PlanePoint
from nonpareil.maths.bootstrap import Interval
from nonpareil.terminal import printable

# Okabe and Ito's palette: told apart with any colour vision, and in grey by lightness.
REFERENCE_COLOUR, PALE = "#0072B2", "#d5d9de"
POLICY_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK = "#22262b"
_NUM_BINS = 40
_MARK_DISTANCE = 0.035  # of the axis: where a saturated reward puts many N on one point, the first names it
_STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#b6bac0",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ebee",
    "grid.linewidth": 0.8,
    "xtick.color": "#60666e",
    "ytick.color": "#60666e",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def new_figure(
    width: float = 6.4, height: float = 4.2, columns: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure (in inches) in the style of all reports, and its axes in a row."""
    # The style is read when artists are made, so the caller draws inside the context.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure, list(figure.subplots(1, columns, squeeze=False)[0])


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def spread(interval: Interval) -> list[list[float]]:
    """Error bars below and above, none where the interval is not finite."""
    sides = interval.estimate - interval.low, interval.high - interval.estimate
    return [[max(side, 0.0) if math.isfinite(side) else 0.0] for side in sides]


def frontier_figure(evaluations: Mapping[str, Evaluation]) -> Figure:
    """KL spent against win rate, by label: the limit of any policy, best-of-N, and each policy measured.

    A hollow marker is the same policy under the unseen reward.
    """
    largest = max((e.kl.high if math.isfinite(e.kl.high) else e.kl.estimate) for e in evaluations.values())
    right = max(1.35, 1.15 * largest)
    with new_figure(6.4, 4.6) as (figure, (axes,)):
        first = next(iter(evaluations.values()))  # of one reference, whose groups all of them share
        limit_line(axes, first.comparison.frontier, right)
        mark_best_of_n(axes, first.best_of_n, right, "o", (7, -11))
        for index, (label, evaluation) in enumerate(evaluations.items()):
            _policy_point(axes, label, evaluation, POLICY_COLOURS[index % len(POLICY_COLOURS)])
        axes.set(xlim=(-0.02 * right, right), ylim=(_lowest_win_rate(evaluations) - 0.02, 1.0))
        axes.set(xlabel="KL from the reference, nats", ylabel="win rate against the reference")
        axes.set_title("What was gained, and what it cost")
        axes.text(0.02 * right, 0.985, "out of any policy's reach", va="top", color="#70757d", fontsize=9)
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def limit_line(axes: Axes, frontier: Sequence[PlanePoint], right: float) -> None:
    """The highest win rate of any policy by KL, and the room above it; level beyond the last point."""
    points = [*frontier, PlanePoint(max(right, frontier[-1].kl), frontier[-1].win_rate)]
    kl, limit = [point.kl for point in points], [point.win_rate for point in points]
    axes.fill_between(kl, limit, 1.02, color="#f1f2f4", linewidth=0)
    axes.plot(kl, limit, color=INK, linewidth=1.4, label="best possible")


def mark_best_of_n(
    axes: Axes, points: Sequence[BestOfNPoint], right: float, marker: str, offset: tuple[int, int]
) -> None:
    """Best-of-N of the reference as far as the axis goes, each N named where there is room."""
    inside = [point for point in points if point.kl <= right]
    if not inside:
        return
    kl, rate = [point.kl for point in inside], [point.win_rate for point in inside]
    axes.plot(kl, rate, marker, color=REFERENCE_COLOUR, markersize=7, label="best-of-N", zorder=3)
    named = -math.inf
    for point in inside:
        if point.kl - named < _MARK_DISTANCE * right:
            continue
        named, at = point.kl, (point.kl, point.win_rate)
        side: Any = {"ha": "right", "va": "bottom"} if offset[0] < 0 else {}
        axes.annotate(
            f"N={point.n}", at, offset, textcoords="offset points", color=REFERENCE_COLOUR, fontsize=8, **side
        )


def _lowest_win_rate(evaluations: Mapping[str, Evaluation]) -> float:
    compared = [c for e in evaluations.values() for c in (e.comparison, e.unseen) if c is not None]
    ends = [end for c in compared for end in (c.win_rate.low, c.win_rate.estimate) if math.isfinite(end)]
    return min(0.5, *ends)


def _policy_point(axes: Axes, label: str, evaluation: Evaluation, colour: str) -> None:
    rates = [(evaluation.comparison.win_rate, label, colour)]
    if evaluation.unseen is not None:
        rates.append((evaluation.unseen.win_rate, f"{label}, unseen reward", "white"))
    for rate, name, face in rates:
        name, x, y = legend_label(name), [evaluation.kl.estimate], [rate.estimate]
        bars: dict[str, Any] = {"xerr": spread(evaluation.kl), "yerr": spread(rate)}
        axes.errorbar(x, y, fmt="none", ecolor=colour, capsize=3, elinewidth=1.3, zorder=4, **bars)
        axes.plot(x, y, "D", color=colour, markersize=7, markerfacecolor=face, label=name, zorder=5)


def legend_label(name: str) -> str:
    """A name for a legend, which leaves out labels that begin with an underscore."""
    shown = printable(name)
    return f" {shown}" if shown.startswith("_") else shown


def curve_figure(curve: CurveReport) -> Figure:
    """Best-of-N of the policy that drew the groups: reward, and win rate beside that without ties, by N."""
    n = [point.n for point in curve.points]
    with new_figure(9.2, 3.8, columns=2) as (figure, (left, right)):
        what = "any of N succeeds" if curve.zero_one else "expected reward of the best of N"
        _band(left, n, [point.reward for point in curve.points], what)
        _mark_recommended(left, curve)
        title = "pass@N" if curve.zero_one else "Reward of best-of-N"
        left.set(xlabel="N, completions drawn", ylabel=curve.reward_name, title=title)
        untied = [count / (count + 1) for count in n]
        right.plot(n, untied, color=PALE, linewidth=6, solid_capstyle="round", label="N/(N+1), without ties")
        measured = [point for point in curve.points if point.win_rate is not None]
        rates = [point.win_rate for point in measured if point.win_rate is not None]
        _band(right, [point.n for point in measured], rates, "measured, ties one half")
        right.set(xlabel="N, completions drawn", ylabel="win rate against one draw")
        right.set_title("Win rate of best-of-N")
        right.set_ylim(0.48, 1.0)
        for axes in (left, right):
            _count_axis(axes, n)
            axes.legend(loc="lower right")
    return figure


def _mark_recommended(axes: Axes, curve: CurveReport) -> None:
    chosen = curve.recommended_n()
    if chosen == 1:
        return
    reward = curve.points[chosen - 1].reward.estimate
    axes.plot([chosen], [reward], "o", color=POLICY_COLOURS[0], markersize=7, zorder=4)
    # The curve rises: there is room above it in its right half, below it in its left half.
    in_right_half = chosen**2 > curve.points[-1].n
    offset, side = ((-7, 5), "right") if in_right_half else ((7, -13), "left")
    text = "still rising" if curve.still_rising() else f"N={chosen}: 90% of the gain"
    axes.annotate(
        text,
        (chosen, reward),
        offset,
        textcoords="offset points",
        ha=side,
        color=POLICY_COLOURS[0],
        fontsize=9,
    )


def _band(axes: Axes, n: list[int], intervals: list[Interval], label: str) -> None:
    estimate = [interval.estimate for interval in intervals]
    low, high = [interval.low for interval in intervals], [interval.high for interval in intervals]
    axes.fill_between(n, low, high, color=REFERENCE_COLOUR, alpha=0.18, linewidth=0)
    axes.plot(n, estimate, color=REFERENCE_COLOUR, linewidth=1.6, label=label)
    doubled = [i for i, count in enumerate(n) if count.bit_count() == 1]
    axes.plot(
        [n[i] for i in doubled], [estimate[i] for i in doubled], "o", color=REFERENCE_COLOUR, markersize=4.5
    )


def _count_axis(axes: Axes, n: list[int]) -> None:
    """A log axis with whole numbers: each doubling of N costs twice."""
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(max(n).bit_length())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def reward_figure(policy: Tensor, reference: Tensor) -> Figure:
    """Rewards of both sides [any shape], NaN left out, as shares of each side's completions."""
    sides = reference[reference.isfinite()].double(), policy[policy.isfinite()].double()
    low, high = (float(bound) for bound in torch.cat(sides).aminmax())
    edges = torch.linspace(low, high if high > low else low + 1, _NUM_BINS + 1, dtype=torch.float64)
    return _histograms(*sides, edges, "reward", "Rewards")


def length_figure(policy: Tensor, reference: Tensor) -> Figure:
    """Completion lengths of both sides in tokens [any shape]."""
    sides = reference.flatten().double(), policy.flatten().double()
    low, high = (float(bound) for bound in torch.cat(sides).aminmax())
    step = math.ceil((high - low + 1) / _NUM_BINS)  # whole tokens, or some bins would hold more lengths
    edges = torch.arange(low - 0.5, high + step, step, dtype=torch.float64)
    return _histograms(*sides, edges, "tokens, end token included", "Lengths")


def _histograms(reference: Tensor, policy: Tensor, edges: Tensor, label: str, title: str) -> Figure:
    with new_figure(4.7, 3.5) as (figure, (axes,)):
        for values, colour, name in (
            (reference, REFERENCE_COLOUR, "reference"),
            (policy, POLICY_COLOURS[0], "policy"),
        ):
            share = torch.histogram(values, edges).hist / max(len(values), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.22)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=f"{name}, mean {values.mean():.3g}")
            axes.axvline(float(values.mean()), color=colour, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel=label, ylabel="share of completions", title=title)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2)
    return figure
