"""Two seeds of a method held against each other: how much of what they lack is noise, and how much direction.

Their log-ratios l_A and l_B, of the same completions of the reference, are taken for what the procedure aims at and
noise that is each seed's own. Then, as correlations within prompts, `corr(l_A, l_B)` is the share of a log-ratio's
variance that is no noise, `corr(l_A, u) corr(l_B, u) / corr(l_A, l_B)` is rho squared without it, u the reward's
quantile, and rho squared is the product of the two.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.log_ratios import LogRatios
from nonpareil.maths.bootstrap import Interval, Statistic
from nonpareil.maths.quantile_correlation import draw_covariance, quantile_covariance, quantile_variance

WORTH_MENDING = 0.8
"""A factor of rho squared below this is worth mending: at 1 in its place rho squared would be a quarter higher."""
MORE_DATA = "more data would help"
OTHER_DIRECTION = "another step, loss or credit would help"
BOTH = "more data would help, and another step, loss or credit"
NEITHER = "little is left to gain"
NOT_TOLD = "the intervals do not tell"
ONE_POOL = "not told: all seeds share one pool"


@dataclass(frozen=True)
class SeedAgreement:
    """The seeds of one method; every interval is over prompts, for these very seeds."""

    name: str
    num_seeds: int
    one_pool: bool
    """Whether all learnt from the same stored completions, whose noise is then in what they have in common."""
    correlation: Interval | None
    """Of the log-ratios of two seeds, the mean over pairs of seeds; None where one of them does not vary."""
    rho_squared: Interval | None
    """The mean over seeds."""
    without_noise: Interval | None
    """What rho squared would be with any amount of data. None also where the seeds have nothing in common."""

    @property
    def noise(self) -> float | None:
        """The share of a log-ratio's variance that is the seed's own."""
        return None if self.correlation is None else 1 - self.correlation.estimate

    @property
    def would_help(self) -> str:
        """What raises rho squared by a quarter or more, in words, where the intervals tell."""
        data, direction = _is_worth_mending(self.correlation), _is_worth_mending(self.without_noise)
        if self.one_pool:
            # With the pool's noise apart the correlation would be lower, and rho squared without noise higher.
            data, direction = data or None, False if direction is False else None
        if data:
            return BOTH if direction else MORE_DATA
        if direction:
            return OTHER_DIRECTION
        if data is None or direction is None:
            return ONE_POOL if self.one_pool else NOT_TOLD
        return NEITHER


def seed_agreements(
    runs: Mapping[str, Sequence[LogRatios]], stored: Collection[str]
) -> tuple[SeedAgreement, ...]:
    """Of every method with two seeds or more, from each seed's log-ratios, all of the same completions.

    `stored` are the methods that learn from the one stored pool.
    """
    return tuple(_agreement(name, seeds, name in stored) for name, seeds in runs.items() if len(seeds) > 1)


def refuse_other_draws(runs: Mapping[str, LogRatios]) -> None:
    """Refuse runs, by their labels, that were not evaluated on the same completions of the reference.

    Raises:
        DataError: naming two of them.
    """
    for (first, one), (second, other) in pairwise(runs.items()):
        if not one.same_draws(other):
            raise DataError(
                f"{first} and {second} were evaluated on other completions of the reference, or other rewards of "
                "them, so their metrics cannot be paired: evaluate anew (--overwrite)"
            )


def _is_worth_mending(factor: Interval | None) -> bool | None:
    """None where the interval does not tell."""
    if factor is None or not (factor.high < WORTH_MENDING or factor.low >= WORTH_MENDING):
        return None
    return factor.high < WORTH_MENDING


def _agreement(name: str, runs: Sequence[LogRatios], one_pool: bool) -> SeedAgreement:
    rewards, seeds = runs[0].rewards, [run.log_ratio for run in runs]
    among = [draw_covariance(one, other, rewards) for one, other in combinations_with_replacement(seeds, 2)]
    correlation = _interval(among, _between_seeds)
    # As u's row and column below and beside those of the seeds.
    and_quantile = [
        quantile_variance(rewards)
        if i == len(seeds)
        else quantile_covariance(seeds[i], rewards)
        if j == len(seeds)
        else draw_covariance(seeds[i], seeds[j], rewards)
        for i, j in combinations_with_replacement(range(len(seeds) + 1), 2)
    ]
    have_something_in_common = correlation is not None and correlation.estimate > 0
    return SeedAgreement(
        name,
        len(runs),
        one_pool,
        correlation,
        _interval(and_quantile, _rho_squared),
        _interval(and_quantile, _without_noise) if have_something_in_common else None,
    )


def _interval(covariances: Sequence[Tensor], statistic: Statistic) -> Interval | None:
    """Of a function of correlations [s, n, n], from each prompt's covariances of n variables, i <= j row by row.

    None where a variable has no variance, or it is not known.
    """
    values = torch.stack(list(covariances), 1)
    known = values[~values.isnan().any(1)]
    if not len(known) or bool((_square(known.mean(0, keepdim=True)).diagonal(dim1=1, dim2=2) <= 0).any()):
        return None
    return Bootstrap().of_means(covariances, lambda means: statistic(_correlations(means)))


def _square(upper: Float[Tensor, "s pairs"]) -> Float[Tensor, "s n n"]:
    size = int((2 * upper.shape[1]) ** 0.5)
    rows, columns = torch.triu_indices(size, size)
    square = upper.new_zeros(len(upper), size, size)
    square[:, rows, columns] = square[:, columns, rows] = upper
    return square


def _correlations(means: Float[Tensor, "s pairs"]) -> Float[Tensor, "s n n"]:
    covariances = _square(means)
    scale = covariances.diagonal(dim1=1, dim2=2).sqrt()
    return covariances / (scale[:, :, None] * scale[:, None, :])


def _pairs(square: Float[Tensor, "s n n"]) -> Float[Tensor, "s pairs"]:
    rows, columns = torch.triu_indices(square.shape[1], square.shape[1], offset=1)
    return square[:, rows, columns]


def _between_seeds(correlations: Float[Tensor, "s n n"]) -> Float[Tensor, " s"]:
    return _pairs(correlations).mean(1)


def _rho_squared(correlations: Float[Tensor, "s n n"]) -> Float[Tensor, " s"]:
    """The last variable is u; signed, as `evaluation.rho_squared` has it."""
    with_quantile = correlations[:, :-1, -1]
    return (with_quantile * with_quantile.abs()).mean(1)


def _without_noise(correlations: Float[Tensor, "s n n"]) -> Float[Tensor, " s"]:
    """Without bound where a resample's seeds have nothing in common."""
    with_quantile, between = correlations[:, :-1, -1], _between_seeds(correlations[:, :-1, :-1])
    products = with_quantile[:, :, None] * with_quantile[:, None, :]
    up = with_quantile > 0
    signed = torch.where(up[:, :, None] & up[:, None, :], products, -products.abs())
    return torch.where(between > 0, _pairs(signed).mean(1) / between, torch.inf)
