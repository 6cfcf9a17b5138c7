"""Stopping as soon as a draw is good enough: what it saves against drawing N and keeping the best."""

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.order_statistics import subset_misses
from nonpareil.maths.scalars import elementwise, refuse_unless


@elementwise
def quantile_threshold(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The quantile (n - 1) / (n + 1): a draw above it has the mean quantile n / (n + 1) of best-of-n. n is real.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(n)
    return (n - 1) / (n + 1)


@elementwise
def threshold_draws(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Draws in the mean until one is above `quantile_threshold(n)`, (n + 1) / 2: near half of best-of-n's.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(n)
    return (n + 1) / 2


@elementwise
def threshold_kl(n: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """KL to the reference, nats, of stopping above `quantile_threshold(n)`, log((n + 1) / 2).

    More than best-of-n's log n - (n - 1) / n at the same mean quantile. For continuous rewards.

    Raises:
        ConfigError: n < 1 or not finite.
    """
    _refuse_bad_n(n)
    return ((n + 1) / 2).log()


def draws_to_first_success(successes: Float[Tensor, "b m"], max_n: int) -> Float[Tensor, "b n"]:
    """Draws in the mean of stopping at the first success, or at n, for n = 1 .. max_n; unbiased.

    `sum_{k<n} (1 - q)^k`, each power by the k-subsets of the group without a success; the answer has best-of-n's
    law. Successes are 1 or 0; NaN (failed) ones are left out, and n beyond the others is NaN.
    """
    return subset_misses(successes, max_n - 1).cumsum(1)


def _refuse_bad_n(n: Tensor) -> None:
    refuse_unless((n >= 1) & torch.isfinite(n), "n", n, "must be at least 1 and finite")
