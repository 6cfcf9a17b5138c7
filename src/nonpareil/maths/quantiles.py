"""Estimators of a reward's log-quantile under the reference, from m reference rewards of the same prompt.

All are nats, finite (never -inf) where defined, and NaN where the reward failed or no reference reward is
left. NaN reference rewards are excluded row by row.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import log_tilt
from nonpareil.maths.counts import RankCounts, count_among
from nonpareil.maths.order_statistics import harmonic_log_quantile
from nonpareil.maths.scalars import Real, at_least_float32

QuantileEstimator = Literal["plug_in", "inclusive_plug_in", "harmonic", "two_sample"]

TWO_SAMPLE_PENALTY = -math.log(16)
"""J-BOND's reward below both anchors: its mean, -log 16 (1 - p<=)^2, equals log p<= at p<= = 1/2."""


def log_quantile(
    rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"], estimator: QuantileEstimator
) -> Float[Tensor, "b k"]:
    """The log-quantile (nats) of k rewards per prompt among m reference rewards, by the estimator named.

    `plug_in`, `harmonic`: log p<; `inclusive_plug_in`: log p<=; `two_sample`: J-BOND's stand-in, m = 2 only.

    Raises:
        ConfigError: an unknown estimator, or `two_sample` with m other than 2.
    """
    if estimator not in _ESTIMATORS:
        raise ConfigError(f"estimator = {estimator!r}: must be one of {', '.join(_ESTIMATORS)}")
    return _ESTIMATORS[estimator](rewards, reference_rewards)


def strict_count(
    rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"]
) -> Float[Tensor, "b k"]:
    """How many valid reference rewards lie strictly below each reward; a float so that NaN stays NaN."""
    counts = count_among(rewards, reference_rewards)
    return counts.below.to(at_least_float32(rewards)).masked_fill(_undefined(rewards, counts), torch.nan)


def plug_in(rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"]) -> Float[Tensor, "b k"]:
    """log((c + 1) / (m + 1)), c of m reference rewards strictly below. vBoN (arXiv:2407.06057), its code."""
    counts = count_among(rewards, reference_rewards)
    quantile = (counts.below + 1) / (counts.valid + 1).to(at_least_float32(rewards))
    return quantile.log().masked_fill(_undefined(rewards, counts), torch.nan)


def inclusive_plug_in(
    rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"]
) -> Float[Tensor, "b k"]:
    """log of the share of the m reference rewards at or below each reward. BOND (arXiv:2407.14622).

    The paper does not say what happens when none is. Here none counts as half a reward: log(1 / (2 m)), never
    -inf, and within .12 nats of the harmonic estimate -H_m for m >= 2.
    """
    counts = count_among(rewards, reference_rewards)
    quantile = counts.at_or_below.to(at_least_float32(rewards)).clamp(min=0.5) / counts.valid
    return quantile.log().masked_fill(_undefined(rewards, counts), torch.nan)


def harmonic(rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"]) -> Float[Tensor, "b k"]:
    """H_c - H_m, c of m reference rewards strictly below; see `order_statistics.harmonic_log_quantile`."""
    counts = count_among(rewards, reference_rewards)
    estimate = harmonic_log_quantile(counts.below.double(), counts.valid.expand_as(counts.below))
    return estimate.to(at_least_float32(rewards)).masked_fill(_undefined(rewards, counts), torch.nan)


def two_sample_log_quantile(
    rewards: Float[Tensor, " b"], anchor_rewards: Float[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """-log 16 where the reward is strictly below both anchor rewards, else 0 (m = 2).

    J-BOND (arXiv:2407.14622), Algorithm 2.

    NaN where the reward or either anchor reward is: two draws are needed, so none can be left out.

    Raises:
        ConfigError: a number of anchor rewards other than 2.
    """
    if anchor_rewards.shape[-1] != 2:
        raise ConfigError(
            f"two_sample needs 2 reference rewards per prompt, got {anchor_rewards.shape[-1]}: "
            "use harmonic or plug_in with any other number"
        )
    lowest = anchor_rewards.amin(-1)  # NaN if either is
    estimate = torch.zeros_like(rewards, dtype=at_least_float32(rewards))
    estimate = estimate.masked_fill(rewards < lowest, TWO_SAMPLE_PENALTY)
    return estimate.masked_fill(rewards.isnan() | lowest.isnan(), torch.nan)


def two_sample_log_tilt(
    rewards: Float[Tensor, " b"], anchor_rewards: Float[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """log(pi_2 / pi_anchor), nats, from two anchor rewards, ties counted: J-BOND's reward for rewards that tie.

    log 2 above either (strictly), log 3/2 level with one and above the other, 0 level with both, -log 3/2 level
    with one and below the other, -log 8 below both. Without ties that is `two_sample_log_quantile` plus log 2, with
    its one exact point, the median. With 0/1 rewards of success rate q best-of-2 takes right answers for wrong
    ones at log((2 - q) / (1 - q)); the mean of this is exact at q = 0 and 1/2, which fixes the log 3/2s.

    NaN where the reward or either anchor reward is: two draws are needed, so none can be left out.

    Raises:
        ConfigError: a number of anchor rewards other than 2.
    """
    below_both = two_sample_log_quantile(rewards, anchor_rewards)  # 0, or its penalty; checks and NaNs
    below, at_or_below, _ = (count.squeeze(-1) for count in count_among(rewards[:, None], anchor_rewards))
    level_and_below = (below == 0) & (at_or_below == 1)
    ties = _log_tie_sum(below.double(), at_or_below.double(), 2).masked_fill(level_and_below, -math.log(1.5))
    return below_both + ties.to(below_both)


def log_tilt_estimate(
    rewards: Float[Tensor, "b k"],
    reference_rewards: Float[Tensor, "b m"],
    n: Real,
    estimator: QuantileEstimator = "harmonic",
) -> Float[Tensor, "b k"]:
    """Estimate log(pi_n / pi_ref) in nats where rewards are these, from m reference rewards per prompt.

    With p< and p<= the strict and the weak quantile, `log tilt = (n-1) log p<= + log((1 - s^n) / (1 - s))`,
    `s = p< / p<=` (`best_of_n.log_tilt`). The first term takes the estimator named, on the count at or below.
    `harmonic` has as its only bias the Taylor tail `(n-1) sum_{j>m} (1 - p<=)^j / j`: the penalty is too small,
    by `(n-1) / (m+1)` nats on average on the reference's own samples, by far less on a policy that wins. The
    second term plugs in the counted s, O(1/m) of bias; where no reference reward equals this one it is
    `log n`. NaN where the reward failed, or all of the prompt's reference rewards did.

    Raises:
        ConfigError: an unknown estimator, or `two_sample` with m other than 2.
    """
    if estimator not in _ESTIMATORS:
        raise ConfigError(f"estimator = {estimator!r}: must be one of {', '.join(_ESTIMATORS)}")
    counts = count_among(rewards, reference_rewards)
    below, at_or_below = counts.below.double(), counts.at_or_below.double()
    if estimator == "two_sample":
        log_weak_quantile = _two_sample(rewards, reference_rewards)
    elif estimator == "inclusive_plug_in":
        log_weak_quantile = inclusive_plug_in(rewards, reference_rewards)
    elif estimator == "plug_in":
        log_weak_quantile = ((at_or_below + 1) / (counts.valid + 1)).log()
    else:
        log_weak_quantile = harmonic_log_quantile(at_or_below, counts.valid.expand_as(at_or_below))
    estimate = (n - 1) * log_weak_quantile.double() + _log_tie_sum(below, at_or_below, n)
    return estimate.to(at_least_float32(rewards)).masked_fill(_undefined(rewards, counts), torch.nan)


def group_log_tilt(rewards: Float[Tensor, "b m"], n: Real) -> Float[Tensor, "b m"]:
    """The same for the m reference samples themselves, each ranked among the m - 1 others of its group.

    `log n + (n-1) (H_{i-1} - H_{m-1})` at rank i without ties; equal rewards share one value, the tie term of
    `log_tilt` included. Best-of-n's partition function is known, so any n goes with any m (after QRPO,
    arXiv:2507.08068). H_m in place of H_{m-1} would be E[log u | rank], but a
    regression conditions on the completion, and every target would be (n-1)/m too low (docs/estimators.md).

    NaN where the reward failed, or where it is the only valid one of its group.
    """
    counts = count_among(rewards, rewards)
    below, others = counts.below.double(), counts.at_or_below.double() - 1
    log_weak_quantile = harmonic_log_quantile(others, (counts.valid - 1).expand_as(others))
    estimate = (n - 1) * log_weak_quantile + _log_tie_sum(below, others, n)
    undefined = rewards.isnan() | (counts.valid < 2)
    return estimate.to(at_least_float32(rewards)).masked_fill(undefined, torch.nan)


def _log_tie_sum(below: Tensor, at_or_below: Tensor, n: Real) -> Tensor:
    """log((1 - s^n) / (1 - s)), s = p< / p<= from counts; log n (no tie) where nothing is at or below."""
    s = torch.where(at_or_below > 0, below / at_or_below.clamp(min=1), 1.0)
    return log_tilt(s, torch.ones_like(s), n)


def _two_sample(rewards: Tensor, reference_rewards: Tensor) -> Tensor:
    anchors = reference_rewards.repeat_interleave(rewards.shape[1], dim=0)
    return two_sample_log_quantile(rewards.flatten(), anchors).view_as(rewards)


def _undefined(rewards: Tensor, counts: RankCounts) -> Bool[Tensor, "b k"]:
    return rewards.isnan() | (counts.valid == 0)


_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plug_in": plug_in,
    "inclusive_plug_in": inclusive_plug_in,
    "harmonic": harmonic,
    "two_sample": _two_sample,
}
