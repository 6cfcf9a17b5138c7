"""Estimates of KL divergences in nats, each named for its estimator and none clamped at zero."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.scalars import Real, at_least_float32, refuse_unless


def token_kl(
    policy_logits: Float[Tensor, "*s v"], reference_logits: Float[Tensor, "*s v"]
) -> Float[Tensor, "*s"]:
    """Exact KL(policy || reference) of each next-token distribution, in nats, worked out in float32 at least.

    Summed along a completion drawn from the policy it is an unbiased estimate of the sequence KL, with less
    variance than `k1`. Its own gradient, though, leaves out how the policy's tokens change what comes after
    them. A token with logit -inf in the policy adds nothing; one that only the reference rules out makes it
    infinite.
    """
    policy = policy_logits.to(at_least_float32(policy_logits)).log_softmax(-1)
    reference = reference_logits.to(at_least_float32(reference_logits)).log_softmax(-1)
    probs = policy.exp()
    return (probs * (policy - reference).masked_fill(probs == 0, 0.0)).sum(-1)


def k1(log_ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log pi - log pi_ref of samples of pi: the unbiased estimate of KL(pi || pi_ref), of either sign.

    For reporting, or as (detached) reward. As a loss, differentiated through log pi on fixed samples, its
    expected gradient is zero: it regularises nothing. Names k1, k2, k3 are Schulman's
    (joschu.net/blog/kl-approx.html).
    """
    return log_ratio


def k2(log_ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """(log pi - log pi_ref)^2 / 2 of samples of pi: a biased estimate of KL(pi || pi_ref), never negative.

    As a loss, differentiated through log pi on fixed samples, its expected gradient is that of the reverse
    KL, KL(pi || pi_ref), exactly: the one of the three to put into a loss.
    """
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """pi_ref / pi - 1 + log(pi / pi_ref) of samples of pi: unbiased for KL(pi || pi_ref), never negative.

    For reporting. As a loss, differentiated through log pi on fixed samples, its expected gradient is that of
    the forward KL, KL(pi_ref || pi). Unbiased only where pi covers pi_ref; over whole sequences its variance
    explodes.
    """
    return torch.expm1(-log_ratio) + log_ratio


def best_of_n_kl(best_probs: Float[Tensor, "*s"], n: Real) -> Float[Tensor, "*s"]:
    """Estimate of KL(best-of-n || reference) in nats, from each best-of-n sample's reference probability e.

    arXiv:2401.01879, section 4; average it over best-of-n samples. It is the exact KL where one outcome of
    mass e stands above a continuum; at e = 0 (long completions) it is the bound log n - (n - 1) / n. Worked
    out in float64.

    Raises:
        ConfigError: n < 1 or not finite, or a probability outside [0, 1] (was a log-probability passed?).
    """
    if not (n >= 1 and math.isfinite(n)):
        raise ConfigError(f"n = {n}: must be finite and at least 1 (1 is the reference itself)")
    e = best_probs.double()
    remedy = "must lie in [0, 1]; exponentiate log-probabilities"
    refuse_unless(((e >= 0) & (e <= 1)) | e.isnan(), "best_probs", e, remedy)
    log_rest = torch.log1p(-e).clamp(min=-1000.0)  # so that 0 * log 0 is 0 at e = 1
    none_best = torch.exp(n * log_rest)
    some_best = -torch.expm1(n * log_rest)
    rest = none_best * (math.log(n) + (n - 1) * log_rest - (n - 1) / n)
    top = torch.where(e > 0, some_best * (some_best / e).log(), e)
    return (rest + top).to(at_least_float32(best_probs))
