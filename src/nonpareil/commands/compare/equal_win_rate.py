"""What each method pays for the same win rate: along its checkpoints, and from the reference through its policy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from nonpareil.commands.compare.over_seeds import OverSeeds, spread_of
from nonpareil.evaluation.by_prompt import ByPrompt
from nonpareil.evaluation.equal_win_rate import AtWinRate, PromptPath, at_win_rates, difference_at, kl_at
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.strength_path import prompt_path
from nonpareil.evaluation.worth import PlanePoint
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.group_frontier import TiltTable, group_least_kl, tilt_table

CHECKPOINTS, INTERPOLATION = "checkpoints", "interpolation"
FEWEST_POINTS = 2
"""Measured, beside the reference: a line from it through one point would be guessed."""


@dataclass(frozen=True)
class RunPoints:
    """What was measured of one run, each point by prompt, with its position; the final policy is in both."""

    method: str
    checkpoints: tuple[tuple[float, ByPrompt], ...]
    """In order: a checkpoint's position is its place."""
    interpolation: tuple[tuple[float, ByPrompt], ...]
    """By strength, ascending."""


@dataclass(frozen=True)
class MethodPath:
    """A method's path over its seeds, all on the same prompts."""

    method: str
    path: str
    """`checkpoints`: where the training went, from the reference to the final policy; `interpolation`: the policies
    between reference and final policy, and beyond."""
    points: tuple[PlanePoint, ...]
    """Means over seeds, in order, without the reference; empty where seeds have too few, or unequally many."""
    at: tuple[AtWinRate, ...]
    """Means over seeds at each win rate; not reached where one of the seeds does not. Empty with too few points."""
    over_seeds: tuple[OverSeeds | None, ...]
    """The KL at each win rate."""
    highest: float
    """The win rate that every seed's path reaches."""


@dataclass(frozen=True)
class PathDifference:
    """The KL of one method less another's at a win rate, paired by prompt."""

    path: str
    first: str
    second: str
    win_rate: float
    kl: Interval

    @property
    def better(self) -> str | None:
        """The method that the interval shows to pay less; None for neither."""
        if self.kl.high < 0:
            return self.first
        return self.second if self.kl.low > 0 else None


@dataclass(frozen=True)
class EqualWinRate:
    """All methods at the same win rates."""

    win_rates: tuple[float, ...]
    num_prompts: int
    """That every point of every path has."""
    least_kl: tuple[float, ...]
    """Of any policy, at each win rate, ties counted; NaN where the reference's draws show none so high."""
    paths: tuple[MethodPath, ...]
    differences: tuple[PathDifference, ...]


def equal_win_rates(
    runs: Sequence[RunPoints], reference: Mapping[str, Tensor], win_rates: Sequence[float], seed: int = 0
) -> EqualWinRate | None:
    """Paths of all runs at these win rates; None where no run has a path of two points.

    `reference` has the rewards [M] of the reference's completions by prompt id, NaN where one failed; `seed` is of
    the bootstrap. Every path is restricted to the prompts that all evaluations have; intervals are over these.
    """
    measured = [
        (kind, run.method, getattr(run, kind))
        for kind in (CHECKPOINTS, INTERPOLATION)
        for run in runs
        if getattr(run, kind)
    ]
    prompts = _common(point for *_, points in measured for _, point in points)
    named: dict[tuple[str, str], list[PromptPath]] = {}
    for kind, method, points in measured:
        named.setdefault((kind, method), []).append(_path(points, prompts))
    whole = {key: paths for key, paths in named.items() if _fewest(paths) >= FEWEST_POINTS}
    if not whole:
        return None
    rewards = torch.stack([reference[each] for each in prompts]).double()
    bootstrap, rates = Bootstrap(seed), tuple(win_rates)
    return EqualWinRate(
        win_rates=rates,
        num_prompts=len(prompts),
        least_kl=_least_kl(rewards, rates),
        paths=tuple(
            _method_path(name, kind, paths, rewards, rates, bootstrap)
            for (kind, name), paths in named.items()
        ),
        differences=tuple(
            PathDifference(kind, one, other, rate, difference)
            for (kind, one), (kind_of_other, other) in combinations(whole, 2)
            if kind == kind_of_other
            for rate in rates
            if (difference := difference_at(whole[kind, one], whole[kind, other], rate, bootstrap))
        ),
    )


def _least_kl(rewards: Tensor, rates: Sequence[float]) -> tuple[float, ...]:
    table = TiltTable.of(tilt_table(rewards).columns().nanmean(0, keepdim=True))
    at = torch.tensor(rates, dtype=torch.float64)
    least = torch.where(at > table.win_rate.amax(), torch.nan, group_least_kl(at, table))
    return tuple(least.tolist())


def _method_path(
    name: str,
    kind: str,
    paths: Sequence[PromptPath],
    rewards: Tensor,
    rates: Sequence[float],
    bootstrap: Bootstrap,
) -> MethodPath:
    found = MethodPath(name, kind, (), (), (), min(path.reach()[1] for path in paths))
    if _fewest(paths) < FEWEST_POINTS:
        return found
    points = []
    if len({len(path.positions) for path in paths}) == 1:
        rate, kl = (
            torch.stack([getattr(path, each)[path.kept()].mean(0) for path in paths]).mean(0).tolist()
            for each in ("win_rate", "kl")
        )
        points = [PlanePoint(*point) for point in zip(kl, rate, strict=True)]
    return replace(
        found,
        points=tuple(points),
        at=at_win_rates(paths, rewards, rates, bootstrap),
        over_seeds=tuple(spread_of([kl_at(path, rate) for path in paths]) for rate in rates),
    )


def _common(points: Iterable[ByPrompt]) -> list[str]:
    """The prompts that all have, in order."""
    sets = [set(point.prompt_ids) for point in points]
    return sorted(set.intersection(*sets)) if sets else []


def _path(points: Sequence[tuple[float, ByPrompt]], prompts: Sequence[str]) -> PromptPath:
    return prompt_path(
        [position for position, _ in points], [_restricted(point, prompts) for _, point in points]
    )


def _restricted(point: ByPrompt, prompts: Sequence[str]) -> ByPrompt:
    places = {each: place for place, each in enumerate(point.prompt_ids)}
    rows = [places[each] for each in prompts]
    return ByPrompt(
        tuple(prompts),
        tuple(point.win_rate[row] for row in rows),
        tuple(point.kl[row] for row in rows),
        None,
    )


def _fewest(paths: Sequence[PromptPath]) -> int:
    return min(len(path.positions) for path in paths)
