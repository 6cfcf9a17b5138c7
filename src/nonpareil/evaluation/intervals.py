"""The intervals of one report: one seed and one number of resamples for all its metrics.

How an interval comes of numbers per prompt is `maths.bootstrap`'s. Here is decided what of a report's metrics goes
into it: which of them are shares, and whether a prompt that was not seen takes part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.bootstrap import Interval, Scale, Statistic, bootstrap_interval

FEWEST_PROMPTS = 30
_MOST_RESAMPLES, _FEWEST_RESAMPLES = 2000, 200
_WEIGHTS_PER_METRIC = 2**23  # 2,000 resamples up to 4,000 prompts; beyond, the bounds are steady with fewer

PerPrompt = Float[Tensor, " b"] | Float[Tensor, "b g"]
"""A metric of each prompt, or g of them, such as a function of N on a grid."""


@dataclass(frozen=True)
class Bootstrap:
    """95% intervals; prompts are weighted at random, each with all its metrics."""

    seed: int = 0

    def of_means(
        self,
        metrics: Sequence[PerPrompt],
        statistic: Statistic,
        *,
        scale: Scale = "real",
        shares: Sequence[int] = (),
    ) -> Interval:
        """The interval of a function of the metrics' means; a prompt with a NaN metric is left out.

        The function maps means [s, metrics] to [s]; the columns of a metric [b, g] stand in order, in its place.

        Args:
            scale: where the function's values can lie.
            shares: positions in `metrics` of shares between 0 and 1. One that is 0, or 1, at every prompt says
                nothing of how it varies: in the resamples a prompt of the other kind stands beside them.

        Raises:
            DataError: every prompt has a NaN.
        """
        values = torch.column_stack([metric.detach().cpu().double() for metric in metrics])
        widths = [metric.shape[1] if metric.ndim == 2 else 1 for metric in metrics]
        columns = torch.zeros(len(metrics), dtype=torch.bool)
        columns[list(shares)] = True
        return self._interval(
            values, statistic, scale, _unseen(values, columns.repeat_interleave(torch.tensor(widths)))
        )

    def _interval(
        self, values: Float[Tensor, "b metrics"], statistic: Statistic, scale: Scale, unseen: Tensor | None
    ) -> Interval:
        num_resamples = max(_FEWEST_RESAMPLES, min(_MOST_RESAMPLES, _WEIGHTS_PER_METRIC // len(values)))
        return bootstrap_interval(
            values, statistic, num_resamples=num_resamples, seed=self.seed, scale=scale, unseen=unseen
        )

    def mean(self, values: Float[Tensor, " b"], scale: Scale = "real") -> Interval:
        """The interval of a mean over prompts; raises as `of_means` does."""
        shares = (0,) if scale == "share" else ()
        return self.of_means([values], lambda means: means[:, 0], scale=scale, shares=shares)

    def mean_or_none(self, values: Float[Tensor, " b"], scale: Scale = "real") -> Interval | None:
        """The same, or None where every prompt is NaN."""
        return None if values.isnan().all() else self.mean(values, scale)

    def ratio(self, part: Float[Tensor, " b"], whole: Float[Tensor, " b"]) -> Interval | None:
        """The interval of sum(part) / sum(whole), the part within the whole; None where the whole is nothing.

        A prompt with none of the whole adds nothing to either sum; left out, it keeps every resample defined.
        """
        present = whole > 0
        if not present.any():
            return None
        rest = torch.where(present, whole - part, torch.nan)
        values = torch.stack([torch.where(present, part, torch.nan), rest], dim=1).double()
        means = values.nanmean(0)
        unseen = (
            means.flip(0) if (means == 0).any() else None
        )  # all, or nothing: one prompt of the other kind
        return self._interval(values, lambda means: means[:, 0] / means.sum(1), "share", unseen)


def rising(intervals: Sequence[Interval]) -> list[Interval]:
    """The intervals of metrics of which none is above the next: where a later one may lie as low, so may it.

    Such as the chance that any of n draws succeeds, n in order. Where it is 1 at every prompt the interval allows
    for a prompt that was not seen; where it is a little less, the prompts' spread alone gives a far shorter one.
    """
    lowest, lowered = math.inf, []
    for interval in reversed(intervals):
        if not math.isnan(interval.low):
            lowest = min(lowest, interval.low)
            interval = replace(interval, low=lowest)
        lowered.append(interval)
    return lowered[::-1]


def few_prompts(num_prompts: int) -> str | None:
    """What to say of intervals over so few prompts; None where they are enough."""
    if num_prompts >= FEWEST_PROMPTS:
        return None
    if num_prompts == 1:
        return f"One prompt gives no interval: take {FEWEST_PROMPTS} or more."
    return f"Intervals over {num_prompts} prompts are rough: take {FEWEST_PROMPTS} or more."


def _unseen(values: Float[Tensor, "b metrics"], shares: Tensor) -> Float[Tensor, " metrics"] | None:
    """The metrics of a prompt that the others do not exclude; None where they vary, or are no shares."""
    kept = values[~values.isnan().any(1)]
    if not len(kept) or not shares.any():
        return None
    means = kept.mean(0)
    extreme = shares & ((kept == 0).all(0) | (kept == 1).all(0))
    return torch.where(extreme, 1 - means, means) if extreme.any() else None
