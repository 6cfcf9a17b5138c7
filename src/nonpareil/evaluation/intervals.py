"""Bootstrap intervals over prompts, with one seed and one budget for all figures of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.win_rate import Interval, Statistic, bootstrap_interval

_MOST_RESAMPLES, _FEWEST_RESAMPLES = 2000, 200
_INDICES_A_FIGURE = 2**23  # 2,000 resamples up to 4,000 prompts; beyond, the bounds are steady with fewer


@dataclass(frozen=True)
class Bootstrap:
    """95% percentile intervals; prompts are resampled whole, with all their metrics."""

    seed: int = 0

    def of_means(self, metrics: Sequence[Float[Tensor, " b"]], statistic: Statistic) -> Interval:
        """The interval of a function of the metrics' means; a prompt with a NaN metric is left out.

        Raises:
            DataError: every prompt has a NaN.
        """
        values = torch.stack([metric.double() for metric in metrics], dim=1)
        num_resamples = max(_FEWEST_RESAMPLES, min(_MOST_RESAMPLES, _INDICES_A_FIGURE // len(values)))
        return bootstrap_interval(values, statistic, num_resamples=num_resamples, seed=self.seed)

    def mean(self, values: Float[Tensor, " b"]) -> Interval:
        """The interval of a mean over prompts; raises as `of_means` does."""
        return self.of_means([values], lambda means: means[:, 0])

    def mean_or_none(self, values: Float[Tensor, " b"]) -> Interval | None:
        """The same, or None where every prompt is NaN."""
        return None if values.isnan().all() else self.mean(values)

    def ratio(self, part: Float[Tensor, " b"], whole: Float[Tensor, " b"]) -> Interval | None:
        """The interval of sum(part) / sum(whole); None where the whole is nothing.

        A prompt with none of the whole adds nothing to either sum; left out, it keeps every resample defined.
        """
        if not whole.any():
            return None
        present = torch.where(whole > 0, whole, torch.nan)
        return self.of_means([part, present], lambda means: means[:, 0] / means[:, 1])
