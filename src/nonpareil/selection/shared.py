"""What the laws share: which candidates are known, and an even share among those that are best."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from nonpareil.errors import DataError

_SAME = 1e-10
"""Of scores that were computed, relative to the largest: sums of the same numbers in another order are equal."""


def known_of(rewards: Float[Tensor, "b m"], *read: Tensor | None) -> Bool[Tensor, "b m"]:
    """Candidates whose reward, and all else that a rule reads of them, is a number.

    Raises:
        DataError: an infinity.
    """
    known = ~rewards.isnan()
    for values in (rewards, *read):
        if values is not None:
            if values.isinf().any():
                raise DataError(
                    "a rule of selection was given an infinity: bound the reward, or make failed ones null"
                )
            known &= ~values.isnan()
    return known


def share_of_best(
    scores: Float[Tensor, "b m"], known: Bool[Tensor, "b m"], *, exact: bool = False
) -> Float[Tensor, "b m"]:
    """1 shared evenly among a row's highest scores; rows without a known candidate are 0. float64.

    `exact`: scores are as they were given, so that equal ones are equal to the last digit.
    """
    best = is_best(scores, known, exact=exact).double()
    return best / best.sum(1, keepdim=True).clamp(min=1)


def is_best(
    scores: Float[Tensor, "b m"], known: Bool[Tensor, "b m"], *, exact: bool = False
) -> Bool[Tensor, "b m"]:
    """Whether each score is its row's highest."""
    top = torch.where(known, scores, -torch.inf).amax(1, keepdim=True)
    slack = 0.0 if exact else _SAME * torch.where(known, scores.abs(), 0.0).amax(1, keepdim=True)
    return known & (scores >= top - slack)


def normalised(weights: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Rows that sum to 1; those of zeros stay."""
    total = weights.sum(1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def by_count(known: Shaped[Tensor, "b m"]) -> list[tuple[int, Bool[Tensor, " b"]]]:
    """Each number of known candidates above 0, with the rows that have it: usually one for all."""
    counts = known.sum(1)
    return [(count, counts == count) for count in counts.unique().tolist() if count]
