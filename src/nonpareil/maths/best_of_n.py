"""What best-of-N is: its distribution, its win rate and KL, and the frontier that bounds every policy.

Continuous formulas (`win_rate`, `kl_upper_bound`, the frontier) are exact for rewards without ties and bounds
otherwise; `distribution` and `log_tilt` are exact for any discrete reference. Formulas of one number take a
float or a tensor (`maths.scalars.elementwise`).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.maths.scalars import Real, at_least_float32, elementwise, refuse_unless

_EULER_GAMMA = 0.5772156649015329
_SUM_TOLERANCE = 1e-3  # a softmax over a large vocabulary in bfloat16 sums to 1 within this


@elementwise
def win_rate(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Win rate of best-of-n against its reference, n / (n + 1); the ceiling where rewards tie.

    Known result, e.g. arXiv:2401.01879. n is real.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(n)
    return n / (n + 1)


@elementwise
def kl_upper_bound(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Upper bound of KL(best-of-n || reference) in nats, log n - (n - 1) / n; exact for continuous rewards.

    arXiv:2401.01879 shows that it is a bound only. n is real.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(n)
    return n.log() - (n - 1) / n


@elementwise
def margin(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Mean log-ratio of best-of-n to its reference, best minus worst of n samples, in nats: (n - 1) H_{n-1}.

    BoNBoN (arXiv:2406.00832): E[log u_best] = -1/n and E[log u_worst] = -H_n. n is real.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(n)
    return (n - 1) * _harmonic_number(n - 1)


@elementwise
def ipo_beta(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """BoNBoN's regularisation, 1 / (2 (n - 1) H_{n-1}), so that IPO's target 1 / (2 beta) is `margin(n)`.

    arXiv:2406.00832. n is real.

    Raises:
        ConfigError: n <= 1 or not finite: best and worst of one sample are the same.
    """
    refuse_unless((n > 1) & n.isfinite(), "n", n, "must be above 1, so that best and worst differ")
    return 0.5 / ((n - 1) * _harmonic_number(n - 1))


@elementwise
def equivalent_n(win_rate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The n whose best-of-n has this win rate, w / (1 - w); below 1 for a policy worse than its reference.

    The inverse of `win_rate`; infinite at 1, NaN at NaN.

    Raises:
        ConfigError: a win rate outside [0, 1].
    """
    _refuse_bad_win_rate(win_rate)
    return win_rate / (1 - win_rate)


@elementwise
def optimal_win_rate(kl: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The highest win rate that any policy can have at this KL to the reference (nats); the physical limit.

    The optimum is the exponential tilt pi_ref * exp(c u) of the quantile u: its win rate is 1/(1 - e^-c) -
    1/c and its KL is c * win - log((e^c - 1) / c); c is found by Newton's method. Exact for continuous
    rewards.

    Raises:
        ConfigError: a negative KL.
    """
    refuse_unless(
        (kl >= 0) | kl.isnan(), "kl", kl, "must be at least 0 (a noisy estimate may be clamped first)"
    )
    # From 40 nats on, 1 - win rate is below float64's resolution. The start is right at small c and within
    # a factor e^.25 at large c.
    kl = kl.clamp(max=40.0)
    log_c = 0.5 * (12 * torch.expm1(2 * kl)).log()
    for _ in range(8):
        c = log_c.exp()
        log_c = torch.where(kl > 0, log_c - (_tilt_kl(c) - kl) / (c.square() * _tilt_slope(c)), -math.inf)
    return torch.where(kl > 0, 0.5 + _tilt_excess(log_c.exp()), kl + 0.5)


@elementwise
def least_kl(win_rate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The least KL to the reference (nats) that any policy with this win rate must spend.

    The inverse of `optimal_win_rate`. 0 at .5 and below (the reference itself needs none), infinite at 1, NaN
    at NaN.

    Raises:
        ConfigError: a win rate outside [0, 1].
    """
    c = tilt_strength(win_rate)
    return torch.where(win_rate == 1, math.inf, torch.where(win_rate <= 0.5, 0.0, _tilt_kl(c)))


@elementwise
def tilt_strength(win_rate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The c whose exponential tilt pi_ref * exp(c u) has this win rate; the inverse of `exponential_tilt`'s first.

    0 at .5 and below, infinite at 1, NaN at NaN.

    Raises:
        ConfigError: a win rate outside [0, 1].
    """
    _refuse_bad_win_rate(win_rate)
    # The excess is half Langevin's function of c / 2; its inverse's Padé approximant is within 5 %.
    s = 2 * win_rate.clamp(min=0.5) - 1
    loss = 1 - win_rate
    c = 2 * s * (3 - s.square()) / (1 - s.square())
    for _ in range(6):
        # Each side of the small/large divide compares the quantity that is not near a constant there.
        missing = torch.where(c < _SMALL, s / 2 - _tilt_excess(c), _tilt_complement(c) - loss)
        c = c + missing / _tilt_slope(c)
    return torch.where(win_rate == 1, math.inf, torch.where(win_rate <= 0.5, 0.0, c))


def exponential_tilt(c: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Win rate and KL to the reference (nats) of the frontier's law pi_ref * exp(c u), for c >= 0; float64."""
    c = c.double()
    return 0.5 + _tilt_excess(c), _tilt_kl(c)


def log_tilt(
    strict_quantile: Float[Tensor, "*s"], quantile: Float[Tensor, "*s"], n: Real
) -> Float[Tensor, "*s"]:
    """Log of best-of-n's probability over its reference's, from p< and p<=, in nats.

    `log((p<=^n - p<^n) / (p<= - p<))`, ties sharing their class's mass; log n + (n - 1) log u where both are
    u. BOND (arXiv:2407.14622), Theorem 1, with ties. n is real. -inf at quantile 0 for n > 1. Worked out in
    the tensors' dtype, float32 at least, without cancellation as p< nears p<=.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(torch.tensor(float(n)))
    dtype = at_least_float32(quantile)
    strict_quantile, quantile = strict_quantile.to(dtype), quantile.to(dtype)
    # (q^n - s^n)/(q - s) = q^(n-1) (1 - rho^n)/(1 - rho) with rho = s/q, from 1 - rho, which does not cancel.
    distinct = quantile > strict_quantile
    missing = torch.where(distinct, (quantile - strict_quantile) / torch.where(distinct, quantile, 1.0), 0.5)
    log_rho = torch.log1p(-missing)
    log_sum = (-torch.expm1(n * log_rho)).log() - missing.log()
    return torch.xlogy(n - 1, quantile) + torch.where(distinct, log_sum, math.log(n))


def distribution(
    reference_probs: Float[Tensor, "*b y"], rewards: Float[Tensor, "*b y"], n: Real
) -> Float[Tensor, "*b y"]:
    """The exact best-of-n distribution over y outcomes; outcomes of equal reward share their class's mass.

    BOND (arXiv:2407.14622), Theorem 1, and vBoN (arXiv:2407.06057), with ties broken at random. n is real.

    Raises:
        ConfigError: n < 1 or not finite.
        DataError: probabilities that do not sum to 1, or a NaN reward (an outcome without a rank).
    """
    if rewards.isnan().any():
        raise DataError("rewards hold NaN: the exact distribution needs a reward for every outcome")
    total = reference_probs.double().sum(-1, keepdim=True)
    if ((total - 1).abs() > _SUM_TOLERANCE).any():
        worst = total.flatten()[(total - 1).abs().argmax()].item()
        raise DataError(f"reference_probs sum to {worst:g} over the last axis: normalise them to 1")
    probs = reference_probs.double() / total

    ascending, order = rewards.sort(dim=-1)
    mass = torch.cat([torch.zeros_like(total), probs.gather(-1, order).cumsum(-1)], dim=-1)
    ranked = rewards.contiguous()
    strict_quantile = mass.gather(-1, torch.searchsorted(ascending, ranked))
    quantile = mass.gather(-1, torch.searchsorted(ascending, ranked, right=True))
    tilted = probs * log_tilt(strict_quantile, quantile, n).exp()
    return tilted.to(at_least_float32(reference_probs))


def _refuse_bad_n(n: Tensor) -> None:
    refuse_unless(
        (n >= 1) & n.isfinite(), "n", n, "must be finite and at least 1 (1 is the reference itself)"
    )


def _refuse_bad_win_rate(win_rate: Tensor) -> None:
    inside = (win_rate >= 0) & (win_rate <= 1)
    refuse_unless(inside | win_rate.isnan(), "win_rate", win_rate, "must lie in [0, 1]; is it a percentage?")


def _harmonic_number(x: Tensor) -> Tensor:
    """H_x for real x >= 0."""
    return torch.digamma(x + 1) + _EULER_GAMMA


# The exponential tilt pi_ref * exp(c u), u uniform. Below _SMALL the closed forms cancel; their series are
# sum_k B_2k c^(2k-j) a_k / (2k)!, B_2k the Bernoulli numbers, six terms leave 1e-15 there.
_SMALL = 0.5
_BERNOULLI = [(2, 1 / 6), (4, -1 / 30), (6, 1 / 42), (8, -1 / 30), (10, 5 / 66), (12, -691 / 2730)]


def _tilt_excess(c: Tensor) -> Tensor:
    """Win rate above one half."""
    series = sum(b / math.factorial(k) * c ** (k - 1) for k, b in _BERNOULLI)
    return torch.where(c < _SMALL, series, 0.5 - _tilt_complement(c))


def _tilt_complement(c: Tensor) -> Tensor:
    """One minus the win rate."""
    return 1 / c - 1 / torch.expm1(c)


def _tilt_slope(c: Tensor) -> Tensor:
    """Derivative of the win rate by c: the variance of u under the tilt."""
    series = sum((k - 1) * b / math.factorial(k) * c ** (k - 2) for k, b in _BERNOULLI)
    return torch.where(c < _SMALL, series, c**-2 - 1 / (4 * torch.sinh(c / 2).square()))


def _tilt_kl(c: Tensor) -> Tensor:
    """KL to the reference, nats."""
    series = sum((1 - 1 / k) * b / math.factorial(k) * c**k for k, b in _BERNOULLI)
    closed = c.log() - 1 + c / torch.expm1(c) - torch.log1p(-torch.exp(-c))
    return torch.where(c < _SMALL, series, closed)
