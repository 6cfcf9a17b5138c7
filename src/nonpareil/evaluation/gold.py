"""Best-of-n by one reward, valued by another: where drawing more makes the answer worse."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.worth import is_zero_one
from nonpareil.maths.bootstrap import Interval, Scale
from nonpareil.maths.order_statistics import best_of_n_values


@dataclass(frozen=True)
class GoldPoint:
    """The gold reward of best-of-n by the other; unbiased."""

    n: int
    gold: Interval


@dataclass(frozen=True)
class GoldCurve:
    """The gold value of best-of-n for n = 1..N, the same prompts at every n, and its peak."""

    name: str
    points: tuple[GoldPoint, ...]
    peak: Interval
    """The n with the highest gold value. Its interval is that of the peaks of 95% of the resamples of prompts."""
    num_prompts: int
    num_prompts_used: int
    gold_missing: int
    """Completions whose reward is known and whose gold reward is null; they are left out as if not drawn."""

    @property
    def stop_at(self) -> tuple[int, int, int]:
        """The peak, and its interval in whole draws."""
        n, last = round(self.peak.estimate), self.points[-1].n
        if math.isnan(self.peak.low):
            return n, 1, last
        return n, max(1, math.floor(self.peak.low + 1e-6)), min(last, math.ceil(self.peak.high - 1e-6))

    def sentence(self) -> str:
        """What to do, in a sentence."""
        n, low, high = self.stop_at
        last = self.points[-1]
        first, top = self.points[0].gold.estimate, self.points[n - 1].gold.estimate
        interval = "" if math.isnan(self.peak.low) else f" [{low}, {high}]"
        if last.n == 1:
            return "One draw is no choice: draw more completions per prompt."
        if n == 1:
            return (
                f"By {self.name}, stop at N = 1{interval}: choosing by the reward gains nothing, and loses "
                f"{first - last.gold.estimate:.3g} at N = {last.n}."
            )
        if n == last.n:
            return (
                f"By {self.name} no peak is seen up to N = {n}{interval}: it is still best there, "
                f"{top - first:.3g} above one draw; draw more to see one."
            )
        return (
            f"By {self.name}, stop at N = {n}{interval}: {top - first:.3g} above one draw; "
            f"N = {last.n} gives {top - last.gold.estimate:.3g} less."
        )


def gold_curve(
    name: str, rewards: Float[Tensor, "b m"], gold: Float[Tensor, "b m"], reach: int, bootstrap: Bootstrap
) -> GoldCurve:
    """The gold value of best-of-n by `rewards`, for n up to `reach`.

    Raises:
        DataError: no prompt has so many completions with both rewards, or an infinite reward.
    """
    both = ~(rewards.isnan() | gold.isnan())
    used = both.sum(1) >= reach
    if not used.any():
        raise DataError(
            f"gold_reward={name!r}: no prompt has {reach} completions of which both rewards are known; "
            "give a smaller max_n, or score anew what failed"
        )
    values = best_of_n_values(torch.where(both, rewards, torch.nan), gold, reach)[used]
    scale: Scale = "share" if is_zero_one(gold, gold) else "real"
    points = [GoldPoint(n, bootstrap.mean(values[:, n - 1], scale)) for n in range(1, reach + 1)]
    peak = bootstrap.of_means([values], _peaks, scale="positive")
    peak = replace(peak, low=max(peak.low, 1.0), high=min(peak.high, float(reach)))
    missing = int((gold.isnan() & ~rewards.isnan()).sum())
    return GoldCurve(name, tuple(points), peak, len(used), int(used.sum()), missing)


def _peaks(means: Float[Tensor, "s n"]) -> Float[Tensor, " s"]:
    """The first n with the highest value; what differs by rounding alone is as high."""
    top = means.amax(1, keepdim=True)
    return ((means >= top - 1e-12 * means.abs().amax(1, keepdim=True)).double().argmax(1) + 1).double()
