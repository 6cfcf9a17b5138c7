"""What stands beside a best-of-N curve where asked for: rules, a gold reward, N beyond the draws, early stops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.evaluation.beyond import Beyond, EarlyStops, beyond, early_stops
from nonpareil.evaluation.curve import CurveReport, reach_of
from nonpareil.evaluation.gold import GoldCurve, gold_curve
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.rule_values import RuleValues, rule_values
from nonpareil.evaluation.worth import is_zero_one
from nonpareil.files import jsonable
from nonpareil.maths.bootstrap import Scale
from nonpareil.selection.candidates import Candidates
from nonpareil.selection.rule import Rule


@dataclass(frozen=True)
class Gold:
    """A second reward of the same completions."""

    name: str
    rewards: Float[Tensor, "b m"]
    """NaN where it failed."""


@dataclass(frozen=True)
class BesideCurve:
    """None for what was not asked for."""

    rules: RuleValues | None = None
    gold: GoldCurve | None = None
    beyond: Beyond | None = None
    early_stops: EarlyStops | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; without what was not asked for."""
        found: dict[str, Any] = jsonable(self)
        if self.gold is not None:
            n, low, high = self.gold.stop_at
            found["gold"] |= {"stop_at": n, "stop_at_interval": [low, high], "said": self.gold.sentence()}
        for name, part in (("beyond", self.beyond), ("early_stops", self.early_stops)):
            if part is not None:
                found[name]["said"] = part.sentence()
        return {name: part for name, part in found.items() if part is not None}


def beside_curve(
    curve: CurveReport,
    candidates: Candidates,
    *,
    rules: Sequence[Rule] = (),
    gold: Gold | None = None,
    extrapolate: int | None = None,
    adaptive_n: bool = False,
    seed: int = 0,
) -> BesideCurve:
    """What is asked for, of the groups of the curve, in the same order of prompts.

    With a gold reward, rules and gold curve leave out completions of which it is null.

    Raises:
        ConfigError, DataError: as `rule_values`, `gold_curve` and `beyond`.
    """
    bootstrap, rewards = Bootstrap(seed), candidates.rewards
    early = early_stops(rewards, curve.points[-1].n, curve.mean_length) if adaptive_n else None
    further = beyond(rewards, extrapolate, bootstrap) if extrapolate is not None else None
    if gold is None and not rules:
        return BesideCurve(beyond=further, early_stops=early)
    if gold is not None:
        candidates = candidates.known_where(~gold.rewards.isnan())
    reach, needed = reach_of((~candidates.rewards.isnan()).sum(1), curve.max_n)
    by_gold = gold_curve(gold.name, rewards, gold.rewards, reach, bootstrap) if gold is not None else None
    values = None
    if rules:
        scales: tuple[Scale, Scale] = (_scale(rewards), "real" if gold is None else _scale(gold.rewards))
        values = rule_values(
            rules,
            candidates,
            curve.mean_length,
            bootstrap,
            least=needed,
            gold=None if gold is None else gold.rewards,
            scales=scales,
        )
    return BesideCurve(values, by_gold, further, early)


def _scale(rewards: torch.Tensor) -> Scale:
    return "share" if is_zero_one(rewards, rewards) else "real"
