"""A figure over the seeds of a method: mean and spread, and what has no part in them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Figures = dict[str, float | None]


@dataclass(frozen=True)
class OverSeeds:
    """A figure over seeds."""

    mean: float
    """Of the seeds where it is finite; infinite where it is in every seed that has it."""
    sd: float | None
    """Of the same seeds, as a sample; None with fewer than two."""
    values: tuple[float, ...]
    """The finite ones."""
    infinite: tuple[float, ...] = ()
    """The infinite ones, which no mean can hold."""
    missing: int = 0
    """Seeds that could not compute it."""

    @property
    def seeds(self) -> int:
        """All that there are."""
        return len(self.values) + len(self.infinite) + self.missing


def over_seeds(figures: Sequence[Figures]) -> dict[str, OverSeeds | None]:
    """Each figure over its seeds; None for one that no seed could compute."""
    return {key: statistic([f[key] for f in figures]) for key in figures[0]}


def statistic(values: Sequence[float | None]) -> OverSeeds | None:
    """Of one figure's values, None or NaN where a seed could not compute it."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return None
    finite = tuple(value for value in known if math.isfinite(value))
    infinite = tuple(value for value in known if math.isinf(value))
    return OverSeeds(
        mean=statistics.fmean(finite) if finite else sum(infinite),  # of both infinities NaN
        sd=statistics.stdev(finite) if len(finite) > 1 else None,
        values=finite,
        infinite=infinite,
        missing=len(values) - len(known),
    )


def mean_of(figures: Mapping[str, OverSeeds | None], key: str) -> float:
    """The mean of a figure; NaN where no seed has it."""
    found = figures[key]
    return math.nan if found is None else found.mean
