"""A metric over the seeds of a method: mean and spread, and what has no part in them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Metrics = dict[str, float | None]
"""One run's, by name; None or NaN for one that it could not compute."""


@dataclass(frozen=True)
class OverSeeds:
    """A metric over seeds."""

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


def over_seeds(runs: Sequence[Metrics]) -> dict[str, OverSeeds | None]:
    """Each metric over the runs of one method; None for one that no seed could compute."""
    return {name: spread_of([metrics[name] for metrics in runs]) for name in runs[0]}


def spread_of(values: Sequence[float | None]) -> OverSeeds | None:
    """Of one metric's values, None or NaN where a seed could not compute it."""
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


def mean_of(metrics: Mapping[str, OverSeeds | None], name: str) -> float:
    """The mean of a metric; NaN where no seed has it."""
    found = metrics[name]
    return math.nan if found is None else found.mean
