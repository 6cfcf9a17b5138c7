"""How a number of each draw goes with the reward's quantile within a prompt: unbiased moments, whatever m is.

The quantile u of a completion is the middle of its tie class under the reference, `P(R < r) + P(R = r) / 2`, which
has mean 1/2. It is known by the ranks of m draws per prompt alone, and a correlation with those is too low: its
square by 1 / (m + 1) of itself where none tie. Here pairs and triples of draws stand in place of u, with its means:

- Cov(x, u): of two draws, `E[(x - x') sign(r - r')] = 4 Cov(x, u)`;
- Var(u): `(1 - sum of p^3) / 12` over tie classes of mass p, of which three draws that all tie tell the sum.

Draws whose reward failed (NaN) are left out throughout, so m may differ by prompt.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.counts import count_among
from nonpareil.maths.tie_classes import without_ties

CONTINUOUS_VARIANCE = 1 / 12
"""Of u where no two rewards are equal."""


def quantile_covariance(values: Float[Tensor, "b m"], rewards: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Cov(value, u) of each prompt, unbiased; float64. NaN with fewer than two rewards."""
    counts = count_among(rewards, rewards)
    valid = counts.valid.double()
    above = counts.valid - counts.at_or_below
    outranked = (counts.below - above).double()  # how many more draws are below it than above
    pairs = (valid * (valid - 1))[:, 0]
    total = (_from_largest(values, rewards) * outranked).sum(1)
    return torch.where(pairs > 0, total / (2 * pairs), torch.nan)


def quantile_variance(rewards: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Var(u) of each prompt, unbiased; float64. NaN with fewer than three rewards.

    Two are enough where no two rewards of any prompt are equal, which are taken for continuous.
    """
    counts = count_among(rewards, rewards)
    valid = counts.valid[:, 0].double()
    if bool(without_ties(rewards).all()):
        return torch.full_like(valid, CONTINUOUS_VARIANCE).masked_fill(valid < 2, torch.nan)
    others = (counts.at_or_below - counts.below - 1).double()
    tied = torch.where(rewards.isnan(), 0.0, others * (others - 1)).sum(1)
    triples = valid * (valid - 1) * (valid - 2)
    return torch.where(triples > 0, (1 - tied / triples) * CONTINUOUS_VARIANCE, torch.nan)


def draw_covariance(
    values: Float[Tensor, "b m"], others: Float[Tensor, "b m"], rewards: Float[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """Cov(value, other) over each prompt's draws, unbiased; float64. NaN with fewer than two rewards.

    A value's own variance with itself for the other; exactly 0 where a prompt's values are all equal.
    """
    valid = (~rewards.isnan()).sum(1).double()
    one, other = (_from_largest(each, rewards) for each in (values, others))
    # Less their means in a second step: what is constant is all zeros by now.
    scored = ~rewards.isnan()
    one, other = (torch.where(scored, x - (x.sum(1) / valid)[:, None], 0.0) for x in (one, other))
    return torch.where(valid > 1, (one * other).sum(1) / (valid - 1), torch.nan)


def _from_largest(values: Tensor, rewards: Tensor) -> Float[Tensor, "b m"]:
    """Less the largest value that has a reward, 0 where it has none: sums lose no digits to a common offset."""
    scored = ~rewards.isnan()
    largest = values.double().masked_fill(~scored, -torch.inf).amax(1, keepdim=True)
    return torch.where(scored, values.double() - largest, 0.0)
