"""Losses as pure functions: tensors in, one number per sequence out. No reduction, no logging, no device moves.

Log-probabilities and log-ratios are nats, summed over the completion's tokens, the end token included.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import ipo_beta, margin
from nonpareil.maths.kl import k3


def forward_kl_loss(best_logprobs: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """-log pi of best-of-n samples: KL(pi_n || pi) up to the constant entropy of pi_n.

    BOND (arXiv:2407.14622), forward term; BoNBoN (arXiv:2406.00832), L_SFT.
    """
    return -best_logprobs


def kl_from_reference_loss(
    token_logprobs: Float[Tensor, "*b t"], reference_token_logprobs: Float[Tensor, "*b t"]
) -> Float[Tensor, "*b"]:
    """KL(pi_ref || pi) along the reference's own samples: sum_t rho_t - 1 - log rho_t, rho_t = pi / pi_ref.

    Unbiased in value and in gradient, which is sum_t (rho_t - 1) grad log pi(y_t): each prefix is the reference's
    own, and each token's mean over the reference is the exact KL of that step. Its expected gradient is that of
    -log pi over reference samples; but a sample's own is 0 at pi = pi_ref, up to the rounding of what drew them.
    Nats; 0 in both behind the end.
    """
    return k3(reference_token_logprobs.detach() - token_logprobs).sum(-1)


def imitation_loss(
    token_logprobs: Float[Tensor, "*b t"],
    reference_token_logprobs: Float[Tensor, "*b t"],
    contrast: Float[Tensor, "*b"],
    pull: Float[Tensor, "*b"],
) -> Float[Tensor, "*b"]:
    """`forward_kl_loss` with the group's mean as control variate: contrast * -log pi + pull * KL(pi_ref || pi).

    Of reference samples. With contrast + pull each sample's chance to be the best of n, and pull the same for all
    of a group, the sum over the group has the expected gradient of KL(pi_n || pi).
    """
    imitated = contrast * forward_kl_loss(token_logprobs.sum(-1))
    return imitated + pull * kl_from_reference_loss(token_logprobs, reference_token_logprobs)


def policy_gradient_loss(
    logprobs: Float[Tensor, "*b"], advantages: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """-advantage * log pi of the policy's own samples; its gradient is REINFORCE's. Advantages are detached.

    With advantage log pi_n - log pi, minus a baseline, it is the gradient of the backward KL, KL(pi || pi_n):
    BOND (arXiv:2407.14622).
    """
    return -advantages.detach() * logprobs


def clipped_policy_gradient_loss(
    token_logprobs: Float[Tensor, "*b t"],
    sampled_token_logprobs: Float[Tensor, "*b t"],
    advantages: Float[Tensor, "*b"],
    epsilon: float,
    completion_mask: Bool[Tensor, "*b t"],
) -> Float[Tensor, "*b"]:
    """PPO's clipped surrogate, summed over the completion's tokens: vBoN (arXiv:2407.06057), its PPO updates.

    -sum_t min(rho_t A, clip(rho_t, 1 - epsilon, 1 + epsilon) A) with rho_t the ratio of the token's probability
    now to that it was drawn with, `exp(token_logprobs - sampled_token_logprobs)`. At rho = 1 its gradient is
    `policy_gradient_loss`'s. A is the completion's advantage, detached; True in the mask keeps a token.
    """
    ratio = (token_logprobs - sampled_token_logprobs.detach()).exp()
    weight = advantages.detach()[..., None]
    surrogate = torch.minimum(ratio * weight, ratio.clamp(1 - epsilon, 1 + epsilon) * weight)
    return -torch.where(completion_mask, surrogate, 0.0).sum(-1)


def pairwise_logistic_loss(
    best_log_ratio: Float[Tensor, " b"], worst_log_ratio: Float[Tensor, " b"], n: int
) -> Float[Tensor, " b"]:
    """DPO's -log sigmoid(ipo_beta(n) * (best - worst log-ratio)): what BoNBoN's released code runs in IPO's place.

    arXiv:2406.00832 prints `pairwise_margin_loss`; its code computes this. Log-ratios are log pi - log pi_ref,
    nats, summed over the completion, end token included. No margin satisfies it: it has no finite minimiser.

    Raises:
        ConfigError: n < 2, where best and worst are one sample.
    """
    _refuse_one(n)
    return -torch.nn.functional.logsigmoid(ipo_beta(n) * (best_log_ratio - worst_log_ratio))


def log_ratio_regression_loss(
    log_ratio: Float[Tensor, "*b"], target: Float[Tensor, "*b"]
) -> Float[Tensor, "*b"]:
    """(log pi / pi_ref - target)^2 / 2, pointwise; after QRPO (arXiv:2507.08068).

    With the target log(pi_n / pi_ref) its minimiser is best-of-n under any positive weighting of completions.
    On the policy's own draws its gradient is that of the backward KL without a baseline. Nats.
    """
    return (log_ratio - target.detach()).square() / 2


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
    _refuse_one(n)
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


def _refuse_one(n: int) -> None:
    if n < 2:
        raise ConfigError(f"n = {n}: must be at least 2, so that best and worst are two samples")
