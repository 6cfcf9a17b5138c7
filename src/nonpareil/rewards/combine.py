"""Several rewards as one: each scored and kept by name, then a weighted sum in which a null stays a null."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.protocols import Reward
from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import run_coroutine


class CombinedReward:
    """Rewards with weights (1 each by default). Equal names get `_2`, `_3`, ... in order.

    Raises:
        ConfigError: no rewards, or weights that are not one finite number a reward.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        """See the class."""
        self.rewards = list(rewards)
        if not self.rewards:
            raise ConfigError("no reward was given; name a reward model or a function")
        self.weights = [1.0] * len(self.rewards) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.rewards):
            raise ConfigError(
                f"reward_weights has {len(self.weights)} values for {len(self.rewards)} rewards; one each"
            )
        if not all(map(math.isfinite, self.weights)):
            raise ConfigError(f"reward_weights={self.weights} must be finite numbers")
        self.names = _distinct([reward.name for reward in self.rewards])

    @property
    def name(self) -> str:
        """The only reward's name, or the names joined by "+"."""
        return "+".join(self.names)

    def score_each(self, request: ScoreRequest) -> dict[str, Scores]:
        """Every reward's own scores by name; those that wait (`async def`, endpoints) are awaited together."""
        scores: dict[str, Scores] = {}
        waiting: dict[str, Any] = {
            name: reward
            for name, reward in zip(self.names, self.rewards, strict=True)
            if getattr(reward, "is_async", False)
        }
        if waiting:
            scores.update(
                zip(waiting, run_coroutine(_score_together(list(waiting.values()), request)), strict=True)
            )
        for name, reward in zip(self.names, self.rewards, strict=True):
            if name not in scores:
                scores[name] = reward.score(request)
        return {name: scores[name] for name in self.names}

    def aggregate(self, by_name: Mapping[str, Sequence[float | None]]) -> list[float | None]:
        """The weighted sum a completion; None where any reward is None, whatever its weight.

        Raises:
            ConfigError: a reward of this combination has no scores there.
        """
        missing = [name for name in self.names if name not in by_name]
        if missing:
            raise ConfigError(f"no scores of {', '.join(missing)}; there are: {', '.join(by_name) or 'none'}")
        rows = zip(*(by_name[name] for name in self.names), strict=True)
        return [self._weighted_sum(row) for row in rows]

    def score(self, request: ScoreRequest) -> Scores:
        """The aggregate as one reward, with the failing rewards named in the reason."""
        each = self.score_each(request)
        values = self.aggregate({name: scores.values for name, scores in each.items()})
        failures: list[str | None] = []
        for row in range(len(request)):
            reasons = [
                f"{name}: {scores.failures[row]}" for name, scores in each.items() if scores.failures[row]
            ]
            failures.append("; ".join(reasons) or None)
        return Scores(values, failures)

    def describe(self) -> dict[str, Any]:
        """Every reward's settings and weight, under the name its column has."""
        rewards = [
            {**reward.describe(), "name": name} for name, reward in zip(self.names, self.rewards, strict=True)
        ]
        return {"name": self.name, "kind": "weighted_sum", "rewards": rewards, "weights": self.weights}

    @property
    def names_within_groups(self) -> list[str]:
        """The rewards that compare the completions of a group: across groups their scores mean nothing."""
        pairs = zip(self.names, self.rewards, strict=True)
        return [name for name, reward in pairs if getattr(reward, "compares_within_groups", False)]

    def check_group_size(self, size: int) -> int:
        """The most calls of a judge that groups of `size` completions take, each; 0 without a judge.

        Raises:
            ConfigError: a reward that cannot score groups of this size.
        """
        checks = [getattr(reward, "check_group_size", None) for reward in self.rewards]
        return sum(check(size) for check in checks if check is not None)

    def release(self) -> None:
        """Free the memory and end the processes of every reward that holds some."""
        for reward in self.rewards:
            release = getattr(reward, "release", None)
            if release is not None:
                release()

    def _weighted_sum(self, row: Sequence[float | None]) -> float | None:
        present = [value for value in row if value is not None]
        if len(present) < len(row):
            return None
        return math.fsum(weight * value for weight, value in zip(self.weights, present, strict=True))


async def _score_together(rewards: list[Any], request: ScoreRequest) -> list[Scores]:
    return list(await asyncio.gather(*(reward.score_async(request) for reward in rewards)))


def _distinct(names: Sequence[str]) -> list[str]:
    """The names with `_2`, `_3`, ... after those already taken."""
    taken: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        taken.append(candidate)
    return taken
