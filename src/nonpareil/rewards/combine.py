"""Several rewards as one: each scored and kept by name, then a weighted sum in which a null stays a null."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import MOST_REWARD, Prompt, ScoreRequest, Scores
from nonpareil.remote import run_coroutine
from nonpareil.rewards.base import REMEDY, Reward
from nonpareil.rewards.functions.calling import run_on_kept_loop
from nonpareil.rewards.functions.function_reward import FunctionReward
from nonpareil.rewards.skipped_tokens import without_tokens
from nonpareil.rewards.standardized import standardized_sum
from nonpareil.user_code.contained import CallFailed, contained


class CombinedReward(Reward):
    """Rewards with weights (1 each by default). Equal names get `_2`, `_3`, ... in order.

    `skipped_tokens` are texts that no reward reads: what `special_tokens` gives of the policy's tokenizer.

    Raises:
        ConfigError: no rewards, an object that is none, or weights that are not one finite number per reward.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float] | None = None,
        skipped_tokens: Sequence[str] = (),
    ) -> None:
        """See the class."""
        self.skipped_tokens = tuple(skipped_tokens)
        self.rewards = list(rewards)
        if not self.rewards:
            raise ConfigError("no reward was given; name a reward model or a function")
        for reward in self.rewards:
            if not isinstance(reward, Reward):
                raise ConfigError(f"a {type(reward).__name__} is no reward; {REMEDY}")
        try:
            self.weights = [1.0] * len(self.rewards) if weights is None else [float(w) for w in weights]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"reward_weights={weights!r} must be a list of numbers") from error
        if len(self.weights) != len(self.rewards):
            raise ConfigError(
                f"reward_weights has {len(self.weights)} values for {len(self.rewards)} rewards; one each"
            )
        if not all(map(math.isfinite, self.weights)):
            raise ConfigError(f"reward_weights={self.weights} must be finite numbers")
        self.names = _distinct([reward.name or type(reward).__name__ for reward in self.rewards])
        self.name = "+".join(self.names)
        self.compares_within_groups = bool(self.names_within_groups)
        self.reads_trainer_state = bool(self.names_reading_state)

    def score_each(self, request: ScoreRequest) -> dict[str, Scores]:
        """Every reward's own scores by name; those that wait (`async def`, endpoints) are awaited together.

        Each gets lists of its own, so that none sees what another did to them.

        Raises:
            RewardError: a reward that left by `sys.exit`, or as its own `score`.
        """
        request = self.as_read(request)
        named = zip(self.names, self.rewards, strict=True)
        waiting = {name: reward for name, reward in named if reward.is_async}
        scores = _score_together(waiting, request) if waiting else {}
        awaited = {name: _checked(name, one, request) for name, one in scores.items()}
        return {name: awaited.get(name) or self._score_one(name, request) for name in self.names}

    def score_one(self, name: str, request: ScoreRequest) -> Scores:
        """The scores of the reward of that name alone; raises as `score_each`."""
        return self._score_one(name, self.as_read(request))

    def as_read(self, request: ScoreRequest) -> ScoreRequest:
        """The request as every reward reads it: without the tokens that are skipped."""
        return without_tokens(request, self.skipped_tokens)

    def reading(self) -> dict[str, Any]:
        """What belongs to every reward's settings beside its own; empty where nothing is skipped."""
        return {"skip_special_tokens": True} if self.skipped_tokens else {}

    def _score_one(self, name: str, request: ScoreRequest) -> Scores:
        reward = self.rewards[self.names.index(name)]
        try:
            return _checked(name, reward.score(request.copy()), request)
        except SystemExit as error:
            raise _left(repr(name), error) from error

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse rewards that cannot score completions of these prompts; see `Reward.check_prompts`.

        Raises:
            ConfigError: a function that needs a column the prompts lack, or that no worker can import.
            DataError: a prompt that leaves no room for a completion in a reward model's window.
        """
        for reward in self.rewards:
            reward.check_prompts(prompts, max_completion_length, tokenizer)

    def log_errors_to(self, folder: Path) -> None:
        """Keep the first traceback of each function in `reward-errors.log` there."""
        for reward in self.rewards:
            reward.log_errors_to(folder)

    def aggregate(self, by_name: Mapping[str, Sequence[float | None]]) -> list[float | None]:
        """The weighted sum per completion; None where any reward is None, whatever its weight.

        Also where the sum is beyond `records.MOST_REWARD`.

        Raises:
            ConfigError: a reward of this combination has no scores there.
        """
        missing = [name for name in self.names if name not in by_name]
        if missing:
            raise ConfigError(f"no scores of {', '.join(missing)}; there are: {', '.join(by_name) or 'none'}")
        rows = zip(*(by_name[name] for name in self.names), strict=True)
        return [self._weighted_sum(row) for row in rows]

    def aggregate_group(self, by_name: Mapping[str, Sequence[float | None]]) -> list[float | None]:
        """Of the completions of one group, each reward standardized over them before it is weighted.

        Null where `aggregate` is. Sums of different groups cannot be compared.
        """
        sums = standardized_sum([by_name[name] for name in self.names], self.weights)
        known = self.aggregate(by_name)
        return [None if value is None else one for one, value in zip(sums, known, strict=True)]

    def score(self, request: ScoreRequest) -> Scores:
        """The aggregate as one reward, with the failing rewards named in the reason."""
        each = self.score_each(request)
        values = self.aggregate({name: scores.values for name, scores in each.items()})
        failures: list[str | None] = []
        for row in range(len(request)):
            reasons = [
                f"{name}: {scores.failures[row]}" for name, scores in each.items() if scores.failures[row]
            ]
            beyond = f"the weighted sum is beyond {MOST_REWARD:g}" if values[row] is None else None
            failures.append("; ".join(reasons) or beyond)
        return Scores(values, failures)

    def describe(self) -> dict[str, Any]:
        """Every reward's settings and weight, under the name its column has."""
        rewards = [
            {**reward.describe(), **self.reading(), "name": name}
            for name, reward in zip(self.names, self.rewards, strict=True)
        ]
        return {"name": self.name, "kind": "weighted_sum", "rewards": rewards, "weights": self.weights}

    @property
    def counts(self) -> Counter[str]:  # type: ignore[override]
        """What all of its rewards have counted."""
        total: Counter[str] = Counter()
        for reward in self.rewards:
            total.update(reward.counts)
        return total

    @property
    def names_within_groups(self) -> list[str]:
        """The rewards that compare the completions of a group: across groups their scores mean nothing."""
        pairs = zip(self.names, self.rewards, strict=True)
        return [name for name, reward in pairs if reward.compares_within_groups]

    @property
    def names_reading_state(self) -> list[str]:
        """The rewards that change as a training goes on: scores of other steps are not theirs."""
        pairs = zip(self.names, self.rewards, strict=True)
        return [name for name, reward in pairs if reward.reads_trainer_state]

    def check_group_size(self, size: int) -> int:
        """The most calls of a judge that each group of `size` completions takes; 0 without a judge.

        Raises:
            ConfigError: a reward that cannot score groups of this size.
        """
        return sum(reward.check_group_size(size) for reward in self.rewards)

    def release(self) -> None:
        """Free the memory and end the processes of every reward that holds some."""
        for reward in self.rewards:
            reward.release()

    def _weighted_sum(self, row: Sequence[float | None]) -> float | None:
        present = [value for value in row if value is not None]
        if len(present) < len(row):
            return None
        try:
            total = math.fsum(weight * value for weight, value in zip(self.weights, present, strict=True))
        except (OverflowError, ValueError):  # beyond all floats, or inf - inf
            return None
        return total if abs(total) <= MOST_REWARD else None


def _checked(name: str, scores: Scores, request: ScoreRequest) -> Scores:
    """Only numbers and nulls, one per completion."""
    if not len(scores.values) == len(scores.failures) == len(request):
        raise RewardError(
            f"reward {name!r} returned {len(scores.values)} scores for {len(request)} completions; one each"
        )
    return scores.only_numbers()


def _score_together(rewards: Mapping[str, Reward], request: ScoreRequest) -> dict[str, Scores]:
    async def gathered() -> list[Scores]:
        return list(await asyncio.gather(*(one.score_async(request.copy()) for one in rewards.values())))

    names = " or ".join(map(repr, rewards))
    if not any(isinstance(one, FunctionReward) for one in rewards.values()):
        try:
            return dict(zip(rewards, run_coroutine(gathered()), strict=True))
        except SystemExit as error:
            raise _left(names, error) from error
    try:
        with contained():
            return dict(zip(rewards, run_on_kept_loop(gathered()), strict=True))
    except CallFailed as failure:
        cause = failure.__cause__
        if isinstance(cause, Exception):  # of an endpoint or a judge, as it would be without functions
            raise cause from cause.__cause__
        raise RewardError(f"reward {names} ended the event loop: {failure}") from failure


def _left(names: str, error: SystemExit) -> RewardError:
    return RewardError(f"reward {names} left by sys.exit({error}); a failure is None with a reason")


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
