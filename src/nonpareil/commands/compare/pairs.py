"""Two methods held against each other prompt by prompt, and which of them that shows to be better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from nonpareil.evaluation.by_prompt import ByPrompt
from nonpareil.maths.bootstrap import Interval, bootstrap_interval

PAIRED = {"win_rate": "win_rate", "kl": "kl", "gold_win_rate": "unseen_win_rate"}
"""The metrics by which methods are paired, and the name of each in `ByPrompt`."""


REFERENCE = "the reference"


@dataclass(frozen=True)
class Pair:
    """One method less another, on the same prompts and reference completions.

    Each difference is of means over the methods' seeds; its 95% interval is over prompts. None where no prompt has
    the metric in every run.
    """

    first: str
    second: str
    win_rate: Interval | None
    kl: Interval | None
    """Nats."""
    gold_win_rate: Interval | None

    def better(self, metric: str) -> str | None:
        """The method that a metric's interval shows to be better, by the sign of its ends; None for neither."""
        interval: Interval | None = getattr(self, metric)
        if interval is None or not (interval.low > 0 or interval.high < 0):
            return None
        return self.first if (interval.low > 0) != (metric == "kl") else self.second

    def dominating(self) -> str | None:
        """The method that is shown to win no less at no more KL, one of them better; None for neither."""
        gain, cost = self.win_rate, self.kl
        if gain is None or cost is None:
            return None
        if gain.low >= 0 and cost.high <= 0 and (gain.low > 0 or cost.high < 0):
            return self.first
        if gain.high <= 0 and cost.low >= 0 and (gain.high < 0 or cost.low > 0):
            return self.second
        return None


def pairs_of(runs: Mapping[str, Sequence[ByPrompt]], seed: int = 0) -> tuple[Pair, ...]:
    """Every pair of methods, of each its runs' metrics per prompt, one run per seed.

    All are of the same prompts; `seed` is of the bootstrap.
    """
    means = {
        name: {metric: _over_runs([getattr(run, key) for run in of_seeds]) for metric, key in PAIRED.items()}
        for name, of_seeds in runs.items()
    }
    return tuple(
        Pair(
            one,
            other,
            **{metric: _difference(means[one][metric], means[other][metric], seed) for metric in PAIRED},
        )
        for one, other in combinations(means, 2)
    )


def dominated_by(
    runs: Mapping[str, Sequence[ByPrompt]], pairs: Sequence[Pair], seed: int = 0
) -> dict[str, tuple[str, ...]]:
    """By method, what is shown to dominate it, the reference or other methods; none: on the front.

    `runs` and `seed` as `pairs_of` has them.
    """
    found = [(pair, winner) for pair in pairs if (winner := pair.dominating()) is not None]
    return {
        name: (
            *((REFERENCE,) if _below_reference(of_seeds, seed) else ()),
            *(winner for pair, winner in found if winner != name and name in (pair.first, pair.second)),
        )
        for name, of_seeds in runs.items()
    }


def _below_reference(runs: Sequence[ByPrompt], seed: int) -> bool:
    """Whether the reference is shown to win more: it has a win rate of one half at no KL."""
    rates = _over_runs([run.win_rate for run in runs])
    less = None if rates is None else _difference(rates, torch.full_like(rates, 0.5), seed)
    return less is not None and less.high < 0


def _over_runs(values: Sequence[Sequence[float | None] | None]) -> Tensor | None:
    """Each prompt's mean over the runs [b]; NaN where one of them has none."""
    if any(run is None for run in values):
        return None
    rows = [[math.nan if value is None else value for value in run] for run in values if run is not None]
    return torch.tensor(rows, dtype=torch.float64).mean(0)


def _difference(one: Tensor | None, other: Tensor | None, seed: int) -> Interval | None:
    if one is None or other is None:
        return None
    differences = one - other
    known = differences[~differences.isnan()]
    if not len(known):
        return None
    if known[0] != 0 and torch.allclose(known, known[0]):
        return _of_equal(differences, known[0].item(), seed)
    return bootstrap_interval(differences, seed=seed)


def _of_equal(differences: Tensor, difference: float, seed: int) -> Interval:
    """Of a difference that is the same at every prompt, which says nothing of how it varies.

    One more prompt that was not seen, of the other sign, takes part: the share of prompts with this sign is between
    .025^(1/n) and 1. Zero is excluded from six prompts on, as in a sign test.
    """
    agreeing = torch.where(differences.isnan(), differences, 1.0)
    share = bootstrap_interval(agreeing, seed=seed, scale="share", unseen=torch.zeros(1))
    low, high = sorted(difference * (2 * end - 1) for end in (share.low, share.high))
    error = 2 * abs(difference) * share.standard_error
    return replace(share, estimate=difference, low=low, high=high, standard_error=error)
