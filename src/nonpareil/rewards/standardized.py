"""Several rewards of one group on one scale, before they are weighted and summed (GDPO, arXiv:2601.05242)."""

import math
from collections.abc import Sequence

_DIGITS = 12
"""Of a sum in units of its weights: what is behind them is rounding, which would tell equal sums apart."""


def standardized(values: Sequence[float | None]) -> list[float | None]:
    """Less their mean, over their standard deviation (of n - 1); nulls stay null, and have no part in either.

    0 where all are equal, or one is alone: such a reward says nothing of the group.
    """
    known = [value for value in values if value is not None]
    if not known or max(known) == min(known):
        return [None if value is None else 0.0 for value in values]
    mean = math.fsum(known) / len(known)
    largest = max(abs(value - mean) for value in known)  # whose square may be beyond floats
    squares = math.fsum(((value - mean) / largest) ** 2 for value in known)
    deviation = math.sqrt(squares / (len(known) - 1))
    return [None if value is None else (value - mean) / largest / deviation for value in values]


def standardized_sum(
    rewards: Sequence[Sequence[float | None]], weights: Sequence[float]
) -> list[float | None]:
    """The weighted sum of the standardized rewards of one group, per completion; null where any of them is.

    Sums that are equal but for rounding are equal, so that they tie.
    """
    size = math.fsum(map(abs, weights)) or 1.0
    sums: list[float | None] = []
    for row in zip(*map(standardized, rewards), strict=True):
        known = [value for value in row if value is not None]
        if len(known) < len(row):
            sums.append(None)
            continue
        total = math.fsum(weight / size * value for weight, value in zip(weights, known, strict=True))
        sums.append(round(total, _DIGITS) * size)
    return sums
