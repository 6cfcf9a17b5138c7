"""The path of policies from the reference through a trained one: what each strength gains, and what it spends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonpareil.evaluation.by_prompt import ByPrompt
from nonpareil.evaluation.equal_win_rate import AtWinRate, PromptPath, at_win_rates, path_between
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.worth import BestOfNPoint, PlanePoint
from nonpareil.files import jsonable
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.interpolation import first_reached

_DRAWN = 129


@dataclass(frozen=True)
class StrengthPoint:
    """The policy at one strength; its whole evaluation lies in a folder of its own."""

    strength: float
    win_rate: Interval
    kl: Interval
    """Nats."""
    kl_efficiency: Interval | None
    equivalent_n: Interval | None
    folder: str
    """Of its report, relative to that of the path."""


@dataclass(frozen=True)
class StrengthPath:
    """Policies of several strengths, on the same prompts against the same completions of the reference."""

    points: tuple[StrengthPoint, ...]
    at: tuple[AtWinRate, ...]
    """Where the path reaches the win rates that were asked for; a position is a strength."""
    reach: tuple[float, float]
    """The lowest and the highest mean win rate of the path."""
    num_prompts: int
    largest_n: int
    rewards_tie: bool
    dtype: str | None
    frontier: tuple[PlanePoint, ...]
    best_of_n: tuple[BestOfNPoint, ...]
    line: tuple[PlanePoint, ...]
    """The interpolated path, from the reference to the largest strength."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; infinities are the texts "Infinity" and "-Infinity"."""
        return jsonable(self, keep_infinities=True)

    def headline(self) -> str:
        """How far the path goes, in a sentence."""
        last = max(self.points, key=lambda point: point.win_rate.estimate)
        return (
            f"From the reference to win rate {last.win_rate.estimate:.2f} at {last.kl.estimate:.2f} nats "
            f"(strength {last.strength:g})"
        )


def strength_path(
    evaluations: Mapping[float, tuple[Evaluation, str]],
    reference_rewards: Tensor,
    win_rates: Sequence[float],
    seed: int = 0,
) -> StrengthPath:
    """The path of evaluations and their folders by strength, ascending; `reference_rewards` [b, M] by prompt id.

    At strength 0 the path is the reference itself, whatever was drawn there.
    """
    first = next(iter(evaluations.values()))[0]
    measured = {strength: each.by_prompt for strength, (each, _) in evaluations.items() if strength > 0}
    path = prompt_path(list(measured), list(measured.values()))
    line = path_between(path, _DRAWN)
    return StrengthPath(
        points=tuple(
            StrengthPoint(
                strength,
                one.comparison.win_rate,
                one.kl,
                one.kl_efficiency,
                one.equivalent_n,
                folder,
            )
            for strength, (one, folder) in evaluations.items()
        ),
        at=at_win_rates([path], reference_rewards, win_rates, Bootstrap(seed)),
        reach=path.reach(),
        num_prompts=first.num_prompts,
        largest_n=first.largest_n,
        rewards_tie=first.rewards_tie,
        dtype=first.dtype,
        frontier=first.comparison.frontier,
        best_of_n=first.best_of_n,
        line=tuple(PlanePoint(kl, rate) for kl, rate in zip(*line, strict=True)),
    )


def prompt_path(positions: Sequence[float], points: Sequence[ByPrompt]) -> PromptPath:
    """The path through these points, whose prompts are the same."""
    rates = [[float("nan") if rate is None else rate for rate in point.win_rate] for point in points]
    kl = torch.tensor([point.kl for point in points], dtype=torch.float64).T
    return PromptPath(tuple(positions), torch.tensor(rates, dtype=torch.float64).T, kl)


def strength_at(win_rates: Mapping[float, float], target: float) -> float | None:
    """The least strength with a win rate, by mean win rates at some strengths above 0; None where none reaches it.

    Between them, and from the reference (.5 at strength 0), it is interpolated as on a `PromptPath`; never beyond.
    None as well for a target of .5 or less, which the reference itself has.
    """
    if target <= 0.5:
        return None
    strengths = sorted(win_rates)
    nodes = torch.tensor([0.0, *strengths], dtype=torch.float64)
    rates = torch.tensor([[0.5, *(win_rates[each] for each in strengths)]], dtype=torch.float64)
    found = float(first_reached(nodes, rates, torch.tensor([target], dtype=torch.float64))[0])
    return None if math.isnan(found) else found
