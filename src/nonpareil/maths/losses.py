"""Losses as pure functions: tensors in, one number a sequence out. No reduction, no logging, no device moves.

Log-probabilities and log-ratios are nats, summed over the completion's tokens, the end token included.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import margin


def forward_kl_loss(best_logprobs: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """-log pi of best-of-n samples: KL(pi_n || pi) up to the constant entropy of pi_n.

    BOND (arXiv:2407.14622), forward term; BoNBoN (arXiv:2406.00832), L_SFT.
    """
    return -best_logprobs


def policy_gradient_loss(
    logprobs: Float[Tensor, " b"], advantages: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """-advantage * log pi of the policy's own samples; its gradient is REINFORCE's. Advantages are detached.

    With advantage log pi_n - log pi, minus a baseline, it is the gradient of the backward KL, KL(pi || pi_n):
    BOND (arXiv:2407.14622).
    """
    return -advantages.detach() * logprobs


def leave_one_out_mean(
    values: Float[Tensor, " b"], valid_mask: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, " b"]:
    """The mean of the other entries: a baseline independent of each own value. BOND (arXiv:2407.14622).

    Entries where `valid_mask` is False (failed) are left out of every mean, whatever they hold. 0 where no
    other valid entry is left.
    """
    if valid_mask is None:
        valid_mask = torch.ones_like(values, dtype=torch.bool)
    own = torch.where(valid_mask, values, 0.0)
    others = valid_mask.sum() - valid_mask.to(values.dtype)
    return torch.where(others > 0, (own.sum() - own) / others.clamp(min=1), 0.0)


def pairwise_margin_loss(
    best_log_ratio: Float[Tensor, " b"], worst_log_ratio: Float[Tensor, " b"], n: int
) -> Float[Tensor, " b"]:
    """Squared distance of each best-minus-worst log-ratio from best-of-n's mean margin.

    BoNBoN (arXiv:2406.00832), L_IPO. Log-ratios are log pi - log pi_ref, in nats, summed over the completion,
    end token included. Zero where the margin is (n - 1) * H_{n-1}. Its minimiser matches best-of-n's mean
    only: the exact best-of-8 policy scores about 74.

    Raises:
        ConfigError: n < 2, where best and worst are one sample.
    """
    if n < 2:
        raise ConfigError(f"n = {n}: must be at least 2, so that best and worst are two samples")
    return (best_log_ratio - worst_log_ratio - margin(n)).square()


def jeffreys(
    forward: Float[Tensor, "*s"], backward: Float[Tensor, "*s"], jeffreys_weight: float | int
) -> Float[Tensor, "*s"]:
    """(1 - w) * forward + w * backward, w the weight of the backward KL. BOND (arXiv:2407.14622).

    Raises:
        ConfigError: a weight outside [0, 1].
    """
    if not 0 <= jeffreys_weight <= 1:
        raise ConfigError(
            f"jeffreys_weight = {jeffreys_weight}: must lie in [0, 1]; 0 is forward KL alone, 1 backward"
        )
    return (1 - jeffreys_weight) * forward + jeffreys_weight * backward
