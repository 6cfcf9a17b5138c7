"""How far a policy is from best-of-N of the reference, estimated from samples of both.

The plain formulas (`log N + (N-1) log u`, `log N - (N-1)/N`) hold for rewards without ties. Where several
completions of a prompt share a reward (verifiers, rubrics, a small space) they are not what best-of-N does,
so both estimators here carry the tie term of the exact best-of-N distribution. It vanishes where no two
rewards are equal, and there they are the plain formulas.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.best_of_n import kl_upper_bound
from nonpareil.maths.counts import count_among
from nonpareil.maths.order_statistics import rank_weights
from nonpareil.maths.quantiles import log_tilt_estimate


def backward_kl(
    kl: Float[Tensor, "b k"], rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"], n: int
) -> Float[Tensor, " b"]:
    """KL(pi || pi_n) of each prompt, nats: the KL to the reference less the mean log tilt.

    `kl` is each policy completion's KL(pi || pi_ref). Biased as `log_tilt_estimate` is: low, by at most
    `(n-1) / (m+1)` nats for a policy no worse than its reference (with ties far less, and never high by more
    than .005 nats). NaN where no reward of a side is left.
    """
    return kl.mean(1) - log_tilt_estimate(rewards.double(), reference_rewards.double(), n).nanmean(1)


def forward_kl(
    log_ratio: Float[Tensor, "b m"], reference_rewards: Float[Tensor, "b m"], n: int
) -> Float[Tensor, " b"]:
    """KL(pi_n || pi) of each prompt, nats: KL(pi_n || pi_ref) less best-of-n's mean log-ratio.

    `log_ratio` is log pi - log pi_ref of the m reference completions. Each is weighted by its chance of being
    the best of n, so all are used and the mean is unbiased. KL(pi_n || pi_ref) is exact without ties, and is
    estimated with O(1/m) bias with them. NaN where fewer than n rewards of a prompt are left.
    """
    weights = rank_weights(reference_rewards, n)
    return kl_upper_bound(n) - (weights * (log_ratio + _spread_within_ties(reference_rewards, n))).sum(1)


def _tie_ratio(below: Tensor, at_or_below: Tensor) -> Tensor:
    """p< / p<= from counts; 1 (no tie) where nothing is at or below."""
    return torch.where(at_or_below > 0, below / at_or_below.clamp(min=1), 1.0)


def _spread_within_ties(rewards: Tensor, n: int) -> Tensor:
    """What `log n - (n-1)/n` overcounts at each draw [b, m], in nats, because its equals share the tilt.

    Give each tie class a uniform tie-breaker: best-of-n then has the plain KL over (y, tie-breaker), and the
    chain rule says how much of it lies within the class: KL(density ~ w^(n-1) on [s, 1] || uniform).
    """
    counts = count_among(rewards, rewards)
    s = _tie_ratio(counts.below.double(), counts.at_or_below.double() - 1)  # the draw itself left out
    mean_log_w = -torch.xlogy(s**n, s) / (1 - s**n) - 1 / n
    spread = (n - 1) * mean_log_w - torch.log((1 - s**n) / (n * (1 - s)))
    return torch.where(s < 1, spread, 0.0)
