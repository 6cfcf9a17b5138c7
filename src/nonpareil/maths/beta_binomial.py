"""Success rates that differ from prompt to prompt as a Beta law, fitted to counts: pass@n beyond the draws."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.maths.scalars import Real

_STEPS = 60
_LEAST, _MOST = 1e-4, 1e6  # of alpha + beta: all or nothing by prompt, and one rate for all


class BetaFit(NamedTuple):
    """Beta(alpha, beta), by its mean and alpha + beta, of each of s fits."""

    mean: Float[Tensor, " s"]
    size: Float[Tensor, " s"]
    """alpha + beta; from 1e-4 (a prompt succeeds always or never) to 1e6 (all have one rate), where it is held."""


def fit_beta(
    weights: Float[Tensor, "s d"], successes: Float[Tensor, " d"], draws: Float[Tensor, " d"]
) -> BetaFit:
    """The Beta law of success rates under which the counts are likeliest, for each of s weightings of prompts.

    Beta-binomial maximum likelihood, as arXiv:2510.05197 extrapolates pass@k. Newton's method on the mean's logit
    and log(alpha + beta), each step held to where the likelihood rises. Rows of weights sum to 1.

    Raises:
        DataError: fewer than two draws for every prompt, which do not show how rates differ.
    """
    if not (draws >= 2).any():
        raise DataError("a Beta law of success rates needs two draws of some prompt; draw more per prompt")
    weights, successes, draws = weights.double(), successes.double(), draws.double()
    mean = (weights @ (successes / draws)).clamp(1e-9, 1 - 1e-9)
    place = torch.stack([mean.logit(), torch.zeros_like(mean)], 1)
    at = _loglik(place, weights, successes, draws)
    damping = torch.full_like(mean, 1e-3)
    for _ in range(_STEPS):
        gradient, curvature = _slopes(place, weights, successes, draws)
        # Damped until the matrix is positive: far from the peak the likelihood is not concave.
        lift = (-torch.linalg.eigvalsh(-curvature)[:, 0]).clamp(min=0) + damping
        matrix = -curvature + lift[:, None, None] * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(matrix, gradient).clamp(-2, 2)
        tried = _held(place + step)
        found = _loglik(tried, weights, successes, draws)
        better = found >= at
        place = torch.where(better[:, None], tried, place)
        at = torch.where(better, found, at)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e6)
    return BetaFit(place[:, 0].sigmoid(), place[:, 1].exp())


def pass_at_n(fit: BetaFit, n: Real) -> Float[Tensor, " s"]:
    """Chance that one of n draws succeeds: 1 - B(alpha, beta + n) / B(alpha, beta)."""
    beta = (1 - fit.mean) * fit.size
    log_fails = torch.lgamma(beta + n) - torch.lgamma(beta) + torch.lgamma(fit.size)
    return -torch.expm1(log_fails - torch.lgamma(fit.size + n))


def _held(place: Tensor) -> Tensor:
    low = torch.tensor([-21.0, torch.tensor(_LEAST).log()], dtype=torch.float64)
    high = torch.tensor([21.0, torch.tensor(_MOST).log()], dtype=torch.float64)
    return place.clamp(low, high)


def _shapes(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, size = place[:, :1].sigmoid(), place[:, 1:].exp()
    return mean * size, (1 - mean) * size, size


def _loglik(place: Tensor, weights: Tensor, successes: Tensor, draws: Tensor) -> Float[Tensor, " s"]:
    """Mean log-likelihood, without what no parameter changes."""
    alpha, beta, size = _shapes(place)
    terms = torch.lgamma(successes + alpha) - torch.lgamma(alpha)
    terms = terms + torch.lgamma(draws - successes + beta) - torch.lgamma(beta)
    terms = terms - torch.lgamma(draws + size) + torch.lgamma(size)
    return (weights * terms).sum(1)


def _slopes(place: Tensor, weights: Tensor, successes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [s, 2] and matrix of second derivatives [s, 2, 2] in (logit of the mean, log size)."""
    alpha, beta, size = _shapes(place)
    mean = place[:, :1].sigmoid()
    fails = draws - successes

    def of(count: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.digamma(count + parameter) - torch.digamma(parameter)
        second = torch.polygamma(1, count + parameter) - torch.polygamma(1, parameter)
        return (weights * first).sum(1, keepdim=True), (weights * second).sum(1, keepdim=True)

    a1, a2 = of(successes, alpha)
    b1, b2 = of(fails, beta)
    s1, s2 = of(draws, size)
    spread = mean * (1 - mean)
    # d alpha = size spread, d beta = -size spread by the logit; alpha, beta, size by the log of the size.
    by_logit = size * spread * (a1 - b1)
    by_size = alpha * a1 + beta * b1 - size * s1
    logit_2 = (size * spread) ** 2 * (a2 + b2) + size * spread * (1 - 2 * mean) * (a1 - b1)
    size_2 = alpha**2 * a2 + beta**2 * b2 - size**2 * s2 + by_size
    both = size * spread * (alpha * a2 - beta * b2) + by_logit
    gradient = torch.cat([by_logit, by_size], 1)
    matrix = torch.stack([torch.cat([logit_2, both], 1), torch.cat([both, size_2], 1)], 1)
    return gradient, matrix
