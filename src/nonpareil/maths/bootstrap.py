"""Intervals over prompts for means and for functions of several means: a paired bootstrap that a few prompts bear.

A percentile bootstrap of 2 to 16 prompts is too narrow: it covers the truth .5 to .9 of the time in place of .95.
Three things mend that. Prompts are weighted at random (Rubin's Bayesian bootstrap), so no resample leaves out all
but one prompt, every resample is a mixture of the prompts (it stays where data can lie), and a long tail of the
data lengthens the interval on its side. The ends are moved out by Student's t over the normal, as for a mean of
few numbers. And where a share is 0, or 1, at every prompt, the caller gives one prompt of the other kind that was
not seen: with n prompts the interval of a share of 1 is then [((1 - level) / 2) ** (1 / n), 1], Clopper and
Pearson's.
"""

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError, DataError

Statistic = Callable[[Tensor], Tensor]
"""Means over prompts [s, metrics] of s resamples -> one number each [s]."""

Scale = Literal["real", "positive", "share"]
"""Where a metric can lie: anywhere, from 0 up, from 0 to 1. Its interval is widened by differences, by ratios, by
odds ratios, and so stays there."""

_SCALES: dict[Scale, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "real": (lambda x: x, lambda x: x),
    "positive": (torch.log, torch.exp),
    "share": (torch.logit, torch.sigmoid),
}
_WEIGHTS_AT_ONCE = 2**22  # held in memory at a time; depends on nothing but the prompts' number


@dataclass(frozen=True)
class Interval:
    """An estimate over prompts with its bootstrap interval."""

    estimate: float
    low: float
    high: float
    standard_error: float
    num_prompts: int
    """Prompts the estimate rests on."""
    num_dropped: int
    """Prompts left out because a metric was NaN."""


def bootstrap_interval(
    per_prompt: Float[Tensor, " b"] | Float[Tensor, "b metrics"],
    statistic: Statistic | None = None,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    *,
    scale: Scale = "real",
    unseen: Float[Tensor, " metrics"] | None = None,
) -> Interval:
    """Bootstrap interval of a mean over prompts, or of a statistic of several such means.

    Whole prompts are weighted, so samples of a prompt stay together (clustered) and its metrics too (paired).
    `statistic` maps means [s, metrics] to [s]: `lambda m: m[:, 0] - m[:, 1]`, or a ratio such as KL efficiency;
    it may be infinite. The same seed and number of prompts give the same weights whatever the metrics. A prompt
    with any NaN metric is dropped and counted. One prompt alone has an estimate, but NaN for bounds and standard
    error.

    Args:
        scale: where the statistic can lie.
        unseen: metrics of a prompt that was not seen, which takes part in the resamples but not in the estimate.

    Raises:
        ConfigError: several metrics without a statistic; level outside (0, 1); fewer than 2 resamples.
        DataError: no prompt without NaN.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level = {level}: must lie strictly between 0 and 1, such as 0.95")
    if num_resamples < 2:
        raise ConfigError(f"num_resamples = {num_resamples}: must be at least 2; 2000 is usual")
    values = per_prompt.detach().cpu().double()
    values = values[:, None] if values.ndim == 1 else values
    if statistic is None:
        if values.shape[1] != 1:
            raise ConfigError(
                f"statistic = None with {values.shape[1]} metrics: pass a function of their means"
            )
        statistic = _only_mean
    kept = values[~values.isnan().any(-1)]
    if not len(kept):
        raise DataError(f"none of {len(values)} prompts has all its metrics: did every reward fail?")

    estimate = statistic(kept.mean(0, keepdim=True))
    low, high, standard_error = math.nan, math.nan, math.nan
    if len(kept) > 1:
        resampled = statistic(_resampled_means(kept, unseen, num_resamples, seed))
        # Order statistics, not interpolated, rounded outwards: they exist where some resamples are infinite.
        tail = torch.tensor((1 - level) / 2, dtype=torch.float64)
        ends = (
            resampled.quantile(tail, interpolation="lower"),
            resampled.quantile(1 - tail, interpolation="higher"),
        )
        # The weights' variance is that of a mean's standard error but for these counts of prompts.
        shortfall = math.sqrt((len(kept) + 1) / (len(kept) - 1))
        widening = shortfall * student_t_quantile(level, len(kept) - 1) / _normal_quantile(level)
        low, high = (_moved_out(end, estimate[0], widening, scale) for end in ends)
        low, high = min(low, estimate.item()), max(high, estimate.item())
        standard_error = shortfall * resampled.std().item()
    return Interval(estimate.item(), low, high, standard_error, len(kept), len(values) - len(kept))


def _resampled_means(
    values: Float[Tensor, "b metrics"], unseen: Tensor | None, num_resamples: int, seed: int
) -> Float[Tensor, "num_resamples metrics"]:
    """Means under weights that are uniform over all that sum to 1: exponential draws over their sum."""
    rows = values if unseen is None else torch.cat([values, unseen.to(values)[None]])
    centre = rows[0]  # weighted sums of what differs from it: equal prompts have exactly equal means
    at_once = max(1, _WEIGHTS_AT_ONCE // (len(values) + 1))
    sizes = [min(at_once, num_resamples - start) for start in range(0, num_resamples, at_once)]
    seeds = torch.randint(2**62, (len(sizes),), generator=torch.Generator().manual_seed(seed))
    means = []
    for size, part in zip(sizes, seeds.tolist(), strict=True):
        # A place for the unseen prompt always, so that the others' weights do not depend on it.
        weights, total, total_with_unseen = _exponential(size, len(values) + 1, part)
        means.append(
            centre
            + (weights[:, : len(rows)] @ (rows - centre)) / (total if unseen is None else total_with_unseen)
        )
    return torch.cat(means)


@functools.lru_cache(maxsize=8)  # at most 256 MiB: the metrics of a report ask for the same ones
def _exponential(
    num_resamples: int, num_prompts: int, seed: int
) -> tuple[Float[Tensor, "s b"], Float[Tensor, "s 1"], Float[Tensor, "s 1"]]:
    """The draws [s, b], and each resample's sum without the last prompt's and with it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(num_resamples, num_prompts, dtype=torch.float64).exponential_(generator=generator)
    return drawn, drawn[:, :-1].sum(1, keepdim=True), drawn.sum(1, keepdim=True)


def _moved_out(end: Tensor, estimate: Tensor, factor: float, scale: Scale) -> float:
    """The end at `factor` times its distance from the estimate, as the scale measures distance."""
    if end == estimate or estimate.isinf():
        return end.item()
    to, back = _SCALES[scale]
    moved = back(to(estimate) + factor * (to(end) - to(estimate)))
    if moved.isnan():  # an estimate of 0 has no ratio to anything
        moved = end if scale == "share" else estimate + factor * (end - estimate)
    return moved.item()


@functools.lru_cache(maxsize=256)
def student_t_quantile(level: float, degrees: int) -> float:
    """The t within whose +-t Student's distribution with these degrees of freedom has this share of its mass.

    Abramowitz and Stegun 26.7.3 and 26.7.4, inverted by bisection of the angle atan(t / sqrt(degrees)).
    """
    k = torch.arange(1, max(1, degrees // 2), dtype=torch.float64)
    ratio = (2 * k) / (2 * k + 1) if degrees % 2 else (2 * k - 1) / (2 * k)

    def mass_within(angle: float) -> float:
        cosine = math.cos(angle)
        series = 1 + (ratio * cosine**2).cumprod(0).sum().item()
        if degrees % 2 == 0:
            return math.sin(angle) * series
        return 2 / math.pi * (angle + (math.sin(angle) * cosine * series if degrees > 1 else 0.0))

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass_within(middle) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _normal_quantile(level: float) -> float:
    return statistics.NormalDist().inv_cdf((1 + level) / 2)


def _only_mean(means: Float[Tensor, "s 1"]) -> Float[Tensor, " s"]:
    return means[:, 0]
