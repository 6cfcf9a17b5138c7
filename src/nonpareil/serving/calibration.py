"""The quantile of an answer among all that the policy may give to its prompt, told by groups drawn before."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from nonpareil.errors import ConfigError

FEWEST = 2
"""Groups that a law over prompts is told by."""


class Calibration:
    """How far an answer's reward lies from what the other answers to its prompt let expect, over stored groups.

    An answer stands by its reward less a prediction from k other rewards of its prompt: their mean, drawn towards
    the mean of all prompts by the share `between / (between + within / k)` of the variances (the best linear
    predictor, by one-way random effects). Its quantile is the share of the stored answers that stand lower, each
    against as many others of its own prompt, ties one half. Over prompts like the stored ones a single answer's
    quantile is therefore even on [0, 1], whatever the rewards are; it is the quantile within the prompt where the
    prompts' rewards differ in their mean alone, and many were drawn.

    The ranks of the draws so far cannot say as much: whether the highest of k is a high one is independent of them.

    Args:
        rewards: of the groups [b, m]; NaN where a reward is null or a group is smaller.
        sampling: how they were drawn, as manifests say it.

    Raises:
        ConfigError: fewer than two groups with two rewards.
    """

    def __init__(self, rewards: Float[np.ndarray, "b m"], sampling: Mapping[str, Any] | None = None) -> None:
        """Takes the variances; the standings are sorted when they are first asked for."""
        known = [row[~np.isnan(row)] for row in rewards]
        self._groups = [row for row in known if len(row) > 1]
        self.sampling = dict(sampling or {})
        if len(self._groups) < FEWEST:
            raise ConfigError(
                f"{len(self._groups)} of {len(rewards)} groups have two rewards, and a quantile is told by "
                f"{FEWEST} at least, better by hundreds; give more"
            )
        sizes = sorted(map(len, self._groups))
        self.most = sizes[-FEWEST] - 1
        """Other rewards that a prediction is made from, the first ones; there are groups that show no more."""
        self._variances()
        self._sorted: dict[int, np.ndarray] = {}

    def prepare(self, most: int) -> None:
        """Sort at once what requests of so many answers need, which takes a second for a million rewards each."""
        for count in range(min(self.most, most - 1) + 1):
            self._standings(count)

    @property
    def finest(self) -> float:
        """The largest quantile that the groups can tell from 1."""
        return 1 - 1 / sum(map(len, self._groups))

    def __len__(self) -> int:
        return len(self._groups)

    def quantiles(self, rewards: Sequence[float | None]) -> list[float | None]:
        """Of each answer to one prompt, in the order drawn, among the others; None of a null reward."""
        found: list[float | None] = []
        for place, reward in enumerate(rewards):
            others = [one for i, one in enumerate(rewards) if i != place and one is not None]
            found.append(None if reward is None else self.quantile(reward, others))
        return found

    def quantile(self, reward: float, others: Sequence[float]) -> float:
        """Of an answer to a prompt whose other answers have these rewards."""
        others = others[: self.most]
        stands, all_of = self._standing(reward, others), self._standings(len(others))
        low, high = all_of.searchsorted(stands, "left"), all_of.searchsorted(stands, "right")
        return float(low + high) / (2 * len(all_of))

    def _standing(self, reward: Any, others: Sequence[Any]) -> Any:
        """Of numbers, or of arrays of one shape: the same arithmetic, so that ties stay ties."""
        if not others:
            return reward - self._mean
        total = others[0]
        for one in others[1:]:
            total = total + one
        share = self._share(len(others))
        return reward - (share * (total / len(others)) + (1 - share) * self._mean)

    def _share(self, count: int) -> float:
        """How far the mean of so many rewards is believed."""
        spread = count * self._between + self._within
        return count * self._between / spread if spread > 0 else 0.0

    def _standings(self, count: int) -> np.ndarray:
        """Of all stored answers against so many others of their group, those that come next in it, sorted."""
        if count not in self._sorted:
            sizes = {len(row) for row in self._groups if len(row) > count}
            alike = [np.stack([row for row in self._groups if len(row) == size]) for size in sorted(sizes)]
            found = [
                self._standing(rows, [np.roll(rows, -j, axis=1) for j in range(1, count + 1)])
                for rows in alike
            ]
            self._sorted[count] = np.sort(np.concatenate([each.ravel() for each in found]))
        return self._sorted[count]

    def _variances(self) -> None:
        """Within and between prompts, unbiased, by the analysis of variance; `between` is 0 at least."""
        sizes = np.array([len(row) for row in self._groups], dtype=float)
        means = np.array([row.mean() for row in self._groups])
        total, count = sizes.sum(), len(sizes)
        self._mean = float((sizes * means).sum() / total)
        squares = sum(((row - mean) ** 2).sum() for row, mean in zip(self._groups, means, strict=True))
        self._within = float(squares / (total - count))
        size = (total - (sizes**2).sum() / total) / (count - 1)
        among = float((sizes * (means - self._mean) ** 2).sum() / (count - 1))
        self._between = max(0.0, (among - self._within) / size)
