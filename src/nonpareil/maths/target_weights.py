"""What a target makes of a completion by its quantile u, and the value of a prefix from a distribution over u.

A target is the reference times a weight of the completion, pi_ref W(u) / E_ref[W]: best-of-n has
W = n u^(n-1), the exponential tilt W = c exp(c u) / (e^c - 1). Both have E_ref[W] = 1. The value of a prefix is
log E_ref[W(u) | prefix], nats. Its distribution over u, in bins of equal width, gives it for every n at once:
within a bin W counts by its mean there, which is exact for completions spread evenly over it.

Completions of equal reward share their class's interval of quantiles evenly, which is how best-of-n with ties
broken at random weighs them.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import tilt_strength, win_rate
from nonpareil.maths.counts import count_among
from nonpareil.maths.scalars import Real

TargetLaw = Literal["tilt", "best_of_n"]
"""`tilt`: the exponential tilt that wins as often as best-of-n, and of all such policies spends the least KL."""


def log_target_weights(target: TargetLaw, n: Real, bins: int) -> Float[Tensor, " w"]:
    """log of W's mean in each of `bins` bins of equal width, lowest first; float64. Their exponentials average 1.

    Raises:
        ConfigError: an unknown target, no bin, or n < 1 or not finite.
    """
    if target not in _LOG_WEIGHTS:
        raise ConfigError(f"target = {target!r}: must be one of {', '.join(_LOG_WEIGHTS)}")
    if bins < 1:
        raise ConfigError(f"bins = {bins}: must be at least 1")
    wins = win_rate(float(n))  # refuses a bad n
    upper = torch.arange(1, bins + 1, dtype=torch.float64) / bins
    return _LOG_WEIGHTS[target](upper, float(n), float(wins))


def quantile_bins(rewards: Float[Tensor, "b m"], bins: int) -> Float[Tensor, "b m w"]:
    """Of each completion how much of its quantile lies in each bin, by the other completions of its group.

    A reward's quantile is the interval from the share of the group below it to the share at or below it, spread
    over the bins by overlap. NaN (failed) rewards take no part, and have NaN. Over a group the bins are equally
    full. With m rewards that do not tie the interval is 1/m wide, so a target that is learnt of such groups is
    weaker: best-of-2's W by the factor 1 - 1/m.

    Raises:
        ConfigError: no bin.
    """
    if bins < 1:
        raise ConfigError(f"bins = {bins}: must be at least 1")
    counts = count_among(rewards, rewards)
    valid = counts.valid[..., None].double()
    low, high = counts.below[..., None] / valid, counts.at_or_below[..., None] / valid
    edges = torch.arange(bins + 1, dtype=torch.float64, device=rewards.device) / bins
    within = edges.clamp(min=low, max=high)  # [b, m, bins + 1]
    shares = within.diff(dim=-1) / (high - low)
    return shares.masked_fill(rewards.isnan()[..., None], torch.nan).to(rewards)


def reachable_win_rate(target: TargetLaw, n: Real, bins: int, m: int) -> float:
    """How often the target wins that is learnt without error of groups of m rewards that do not tie, in bins.

    The mean over the ranks r = 1 ... m of the weight that `quantile_bins` gives the rank, times r / (m + 1), the
    mean quantile of the reward that has it.

    Raises:
        ConfigError: as `log_target_weights`.
    """
    weights = log_target_weights(target, n, bins).exp()
    ranks = torch.arange(1, m + 1, dtype=torch.float64)
    by_rank = quantile_bins(ranks[None], bins)[0] @ weights
    return (by_rank * ranks / (m + 1)).mean().item()


def log_values(logits: Float[Tensor, "*s w"], log_weights: Float[Tensor, " w"]) -> Float[Tensor, "*s"]:
    """log E[W], nats, of distributions over the bins, given as logits; float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = logits.to(wide).log_softmax(-1)
    return (logprobs + log_weights.to(logprobs)).logsumexp(-1)


def _log_best_of_n(upper: Tensor, n: float, wins: float) -> Tensor:
    """W = n u^(n-1), whose integral over a bin is high^n - low^n."""
    bins = len(upper)
    low_over_high = 1 - 1 / (bins * upper)
    return math.log(bins) + n * upper.log() + torch.log1p(-(low_over_high**n))


def _log_tilt(upper: Tensor, n: float, wins: float) -> Tensor:
    """W = c e^(c u) / (e^c - 1), whose integral over a bin is (e^(c high) - e^(c low)) / (e^c - 1)."""
    c, bins = float(tilt_strength(wins)), len(upper)
    if c == 0:
        return torch.zeros_like(upper)
    whole = math.log(-math.expm1(-c / bins)) - math.log(-math.expm1(-c))
    return math.log(bins) + c * (upper - 1) + whole


_LOG_WEIGHTS = {"tilt": _log_tilt, "best_of_n": _log_best_of_n}
