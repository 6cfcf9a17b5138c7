"""Rewards that have scored already: known by what a manifest says of them, not loaded, and asked for nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from nonpareil.errors import ConfigError
from nonpareil.records import Prompt, ScoreRequest
from nonpareil.rewards.base import Reward
from nonpareil.rewards.combine import CombinedReward


class StoredReward(Reward):
    """A reward whose stored scores are all that is used. `described`: what its own `describe` said then."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        """See the class."""
        self.name = str(described["name"])
        self._described = dict(described)

    def describe(self) -> dict[str, Any]:
        """As it was when it scored."""
        return dict(self._described)

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse to score anything.

        Raises:
            ConfigError: always.
        """
        self._refuse()

    def score(self, request: ScoreRequest) -> NoReturn:
        """Refuse to score anything; raises as `check_prompts`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError(
            f"reward {self.name!r} is known by its stored scores alone, and was not loaded; give the reward itself "
            "(reward_funcs, reward_model_name_or_path) to score with it"
        )


def stored_rewards(described: Mapping[str, Any], weights: Sequence[float] | None = None) -> CombinedReward:
    """All rewards of a manifest (its key `rewards`), with their weights then, or other ones."""
    rewards = [StoredReward(one) for one in described["rewards"]]
    return CombinedReward(rewards, described["weights"] if weights is None else weights)
