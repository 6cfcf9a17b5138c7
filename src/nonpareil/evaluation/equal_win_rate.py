"""KL and KL efficiency at equal win rate: what a policy's path pays for it, interpolated between its points.

A path begins at the reference, whose win rate against itself is exactly .5 at no KL. Along it win rate and the
square root of the KL are interpolated by monotone cubics: for a small change the win rate leaves one half, and the
KL's root leaves 0, in proportion to it, while the KL itself begins flat. Nothing is said beyond the last point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.worth import shows_efficiency, shows_least_kl
from nonpareil.maths.bootstrap import Interval, Statistic
from nonpareil.maths.group_frontier import TILTS, TiltTable, group_least_kl, tilt_table
from nonpareil.maths.interpolation import first_reached, value_at


@dataclass(frozen=True)
class PromptPath:
    """The points of one policy's path, prompt by prompt, in order from the reference, which is not among them."""

    positions: tuple[float, ...]
    """Of the points: strengths, or their number. Rising, above 0, where the reference lies."""
    win_rate: Float[Tensor, "b g"]
    """Against the reference, ties one half; NaN where a prompt has no pair."""
    kl: Float[Tensor, "b g"]
    """From the reference, nats."""

    def reach(self) -> tuple[float, float]:
        """The lowest and the highest mean win rate, the reference's among them."""
        rates = [0.5, *self.win_rate[self.kept()].mean(0).tolist()]
        return min(rates), max(rates)

    def kept(self) -> Tensor:
        """Which prompts have a win rate at every point [b]."""
        return ~self.win_rate.isnan().any(1)


@dataclass(frozen=True)
class AtWinRate:
    """Where a path first reaches a win rate. An end that is infinite: some resamples of prompts never reach it."""

    win_rate: float
    position: Interval | None
    """On the path; None where the path does not reach the win rate."""
    kl: Interval | None
    """Nats."""
    kl_efficiency: Interval | None
    """Least KL of any policy with this win rate, ties counted / KL; None where the reference does not show it, or
    the KL is too little to tell (`worth.shows_efficiency`)."""


def at_win_rates(
    paths: Sequence[PromptPath],
    reference_rewards: Float[Tensor, "b m"],
    win_rates: Sequence[float],
    bootstrap: Bootstrap,
) -> tuple[AtWinRate, ...]:
    """Means over paths (seeds) at each win rate, over the prompts that all have; not reached where one does not.

    Resampling weights prompts; the whole path and the least KL are computed anew of each resample.
    """
    metrics = [*_metrics(paths), tilt_table(reference_rewards).columns()]
    shown = shows_least_kl(reference_rewards[~reference_rewards.isnan().all(1)])

    def interval(statistic: Statistic) -> Interval | None:
        found = bootstrap.of_means(metrics, statistic, scale="positive")
        return None if math.isinf(found.estimate) else found

    rows = []
    for rate in win_rates:
        at = _Reached(paths, rate)
        position, kl = interval(at.position), interval(at.kl)
        efficiency = None
        if shown and kl is not None:
            there = bootstrap.of_means(metrics, at.win_rate_at(at.positions(_kept_means(metrics))))
            if shows_efficiency(kl.estimate, there, reference_rewards):
                efficiency = interval(at.efficiency)
        rows.append(AtWinRate(rate, position, kl, efficiency))
    return tuple(rows)


def difference_at(
    one: Sequence[PromptPath], other: Sequence[PromptPath], win_rate: float, bootstrap: Bootstrap
) -> Interval | None:
    """The KL that the first paths' mean spends at a win rate less the others', paired by prompt; None unless both
    reach it.

    A resample in which neither reaches it may lie anywhere: it counts at both ends.
    """
    first, second = _Reached(one, win_rate), _Reached(other, win_rate)
    metrics, width = [*_metrics(one), *_metrics(other)], first.width

    def difference(means: Tensor) -> Tensor:
        return first.kl(means[:, :width]) - second.kl(means[:, width:])

    at_most = bootstrap.of_means(metrics, lambda means: _where_unknown(difference(means), math.inf))
    if not math.isfinite(at_most.estimate):
        return None
    at_least = bootstrap.of_means(metrics, lambda means: _where_unknown(difference(means), -math.inf))
    return Interval(**{**vars(at_most), "low": at_least.low})


def kl_at(path: PromptPath, win_rate: float) -> float | None:
    """The KL at a win rate of one path, nats; None where it does not reach it."""
    kl = float(_Reached([path], win_rate).kl(_means_of(path))[0])
    return kl if math.isfinite(kl) else None


def path_between(path: PromptPath, count: int) -> tuple[list[float], list[float]]:
    """KL and win rate of the mean path at `count` places from the reference to its last point, to draw it."""
    nodes, rate, root = _curves(path.positions, _means_of(path))
    places = torch.linspace(0, float(nodes[-1]), count, dtype=torch.float64)
    rates, roots = (value_at(nodes, curve.expand(count, -1), places) for curve in (rate, root))
    return roots.square().tolist(), rates.tolist()


def _means_of(path: PromptPath) -> Tensor:
    """Over prompts [1, 2 g], as `_metrics` has them."""
    kept = path.kept()
    return torch.cat([path.win_rate[kept].double().mean(0), path.kl[kept].double().mean(0)])[None]


def _metrics(paths: Sequence[PromptPath]) -> list[Tensor]:
    return [each.double() for path in paths for each in (path.win_rate, path.kl)]


def _kept_means(metrics: Sequence[Tensor]) -> Tensor:
    """Over the prompts that all metrics have [1, columns]."""
    values = torch.column_stack(list(metrics))
    return values[~values.isnan().any(1)].mean(0, keepdim=True)


def _where_unknown(values: Tensor, instead: float) -> Tensor:
    return torch.where(values.isnan(), instead, values)


def _curves(positions: Sequence[float], means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [g + 1], and win rate and root of the KL there [s, g + 1], from the first columns of means."""
    count = len(positions)
    nodes = torch.tensor([0.0, *positions], dtype=torch.float64)
    rate, kl = means[:, : 2 * count].split(count, dim=1)
    ends = torch.zeros(len(means), 1, dtype=torch.float64)
    return nodes, torch.cat([ends + 0.5, rate], 1), torch.cat([ends, kl.clamp(min=0).sqrt()], 1)


@dataclass(frozen=True)
class _Reached:
    """Statistics of means over prompts, whose first columns are the paths' win rates and KLs."""

    paths: Sequence[PromptPath]
    win_rate: float

    @property
    def width(self) -> int:
        return sum(2 * len(path.positions) for path in self.paths)

    def position(self, means: Tensor) -> Tensor:
        return self._means(means)[0]

    def kl(self, means: Tensor) -> Tensor:
        return self._means(means)[1]

    def efficiency(self, means: Tensor) -> Tensor:
        table = TiltTable.of(means[:, self.width : self.width + 2 * len(TILTS)])
        least = group_least_kl(torch.full_like(means[:, 0], self.win_rate), table)
        return least / self.kl(means)

    def positions(self, means: Tensor) -> list[Tensor]:
        """On each path [s]; NaN where it does not reach the win rate."""
        target = torch.full_like(means[:, 0], self.win_rate)
        return [first_reached(nodes, rate, target) for nodes, rate, _ in self._curves(means)]

    def win_rate_at(self, positions: Sequence[Tensor]) -> Statistic:
        """The paths' mean win rate at positions [1] that stay where they are, whatever the means."""

        def statistic(means: Tensor) -> Tensor:
            places = [position.expand(len(means)) for position in positions]
            curves = self._curves(means)
            return torch.stack(
                [value_at(nodes, rate, at) for (nodes, rate, _), at in zip(curves, places, strict=True)]
            ).mean(0)

        return statistic

    def _means(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Position and KL, averaged over the paths; infinite where one does not reach the win rate."""
        found = [
            torch.stack([position, value_at(nodes, root, position).square()])
            for position, (nodes, _, root) in zip(self.positions(means), self._curves(means), strict=True)
        ]
        position, kl = _where_unknown(torch.stack(found).mean(0), math.inf)
        return position, kl

    def _curves(self, means: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        widths = [2 * len(path.positions) for path in self.paths]
        parts = means[:, : self.width].split(widths, dim=1)
        return [_curves(path.positions, part) for path, part in zip(self.paths, parts, strict=True)]
