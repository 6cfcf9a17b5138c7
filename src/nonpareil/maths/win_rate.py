"""Win rates over all pairs within a prompt, and intervals by a paired bootstrap over prompts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths.counts import count_among
from nonpareil.maths.scalars import at_least_float32

Statistic = Callable[[Tensor], Tensor]
"""Means over prompts [s, metrics] of s resamples -> one number each [s]."""

_INDICES_AT_ONCE = (
    2**22
)  # resampled prompts held in memory at a time; depends on nothing but the prompts' number


@dataclass(frozen=True)
class PairCounts:
    """Shares of each prompt's pairs of a policy and a reference sample; NaN where a prompt has no pair."""

    win: Float[Tensor, " b"]
    tie: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]

    @property
    def win_rate(self) -> Float[Tensor, " b"]:
        """win + tie / 2 of each prompt, written so that a policy against itself has exactly one half."""
        return (1 + self.win - self.loss) / 2


@dataclass(frozen=True)
class Interval:
    """An estimate over prompts with its bootstrap interval."""

    estimate: float
    low: float
    high: float
    standard_error: float
    num_prompts: int
    """Prompts the estimate rests on."""
    num_dropped: int
    """Prompts left out because a metric was NaN."""


def pairwise(policy_rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"]) -> PairCounts:
    """Win, tie and loss shares over all k x m pairs of each prompt, without forming them.

    Failed (NaN) rewards are excluded; a prompt without a pair left is NaN.
    """
    below, at_or_below, num_references = count_among(policy_rewards, reference_rewards)
    valid = ~policy_rewards.isnan()

    def share(count: Tensor) -> Tensor:
        pairs = valid.sum(-1) * num_references.squeeze(-1)
        return (count * valid).sum(-1).to(
            at_least_float32(policy_rewards)
        ) / pairs  # 0 / 0 is NaN, as it should be

    return PairCounts(
        win=share(below), tie=share(at_or_below - below), loss=share(num_references - at_or_below)
    )


def bootstrap_interval(
    per_prompt: Float[Tensor, " b"] | Float[Tensor, "b metrics"],
    statistic: Statistic | None = None,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean over prompts, or of a statistic of several such means.

    Whole prompts are resampled with replacement, so samples of a prompt stay together (clustered) and its
    metrics too (paired). `statistic` maps means [s, metrics] to [s]: `lambda m: m[:, 0] - m[:, 1]`, or a
    ratio such as KL efficiency. The same seed and number of prompts resample the same prompts whatever the
    metrics. A prompt with any NaN metric is dropped and counted. One prompt alone has an estimate, but NaN
    for bounds and standard error.

    Raises:
        ConfigError: several metrics without a statistic; level outside (0, 1); fewer than 2 resamples.
        DataError: no prompt without NaN.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level = {level}: must lie strictly between 0 and 1, such as 0.95")
    if num_resamples < 2:
        raise ConfigError(f"num_resamples = {num_resamples}: must be at least 2; 2000 is usual")
    values = per_prompt.detach().cpu().double()
    values = values[:, None] if values.ndim == 1 else values
    if statistic is None:
        if values.shape[1] != 1:
            raise ConfigError(
                f"statistic = None with {values.shape[1]} metrics: pass a function of their means"
            )
        statistic = _only_mean
    kept = values[~values.isnan().any(-1)]
    if not len(kept):
        raise DataError(f"none of {len(values)} prompts has all its metrics: did every reward fail?")

    estimate = statistic(kept.mean(0, keepdim=True)).item()
    low, high, standard_error = math.nan, math.nan, math.nan
    if len(kept) > 1:
        resampled = statistic(_resampled_means(kept, num_resamples, seed))
        tail = torch.tensor((1 - level) / 2, dtype=torch.float64)
        # Order statistics, not interpolated, rounded outwards: they exist where some resamples are infinite.
        low = resampled.quantile(tail, interpolation="lower").item()
        high = resampled.quantile(1 - tail, interpolation="higher").item()
        standard_error = resampled.std().item()
    return Interval(estimate, low, high, standard_error, len(kept), len(values) - len(kept))


def _resampled_means(
    values: Float[Tensor, "b metrics"], num_resamples: int, seed: int
) -> Float[Tensor, "num_resamples metrics"]:
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, _INDICES_AT_ONCE // len(values))
    means = []
    for start in range(0, num_resamples, at_once):
        shape = (min(at_once, num_resamples - start), len(values))
        prompts = torch.randint(len(values), shape, generator=generator)
        means.append(torch.stack([metric[prompts].mean(1) for metric in values.unbind(1)], dim=1))
    return torch.cat(means)


def _only_mean(means: Float[Tensor, "s 1"]) -> Float[Tensor, " s"]:
    return means[:, 0]
