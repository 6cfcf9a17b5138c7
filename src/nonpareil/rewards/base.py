"""The contract of a reward: a class to inherit from, whose defaults are those of a reward that needs no more."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nonpareil.records import Prompt, ScoreRequest, Scores

REMEDY = "an object that scores must be of a class that inherits nonpareil.rewards.Reward"
"""What a user is told who hands something else."""


class Reward(ABC):
    """Scores completions; higher is better.

    A reward of one's own is a subclass with `score` and `describe`; a plain function with TRL's signature needs no
    class. Everything else here has a default and is overridden where it applies.
    """

    name: str = ""
    """The `<name>` of the column `rewards/<name>`; the name of the class where it is empty."""
    is_async: bool = False
    """Whether `score_async` waits for something (a server): such rewards are awaited together."""
    compares_within_groups: bool = False
    """Whether a score says how a completion stands among those of its own group (`ScoreRequest.group_places`), so
    that scores of different groups cannot be compared."""
    reads_trainer_state: bool = False
    """Whether a score follows from how far a training is (`ScoreRequest.trainer_state`), so that scores of
    different steps, or of no training, cannot be compared."""
    counts: Mapping[str, int] = MappingProxyType({})
    """What it has counted since it was made (calls, lost verdicts, ...), for the command's summary."""

    @abstractmethod
    def score(self, request: ScoreRequest) -> Scores:
        """One value per completion, or None with its reason; never a number that stands for a failure.

        Raises:
            RewardError: scoring cannot go on, for any completion.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Every setting that changes a score, for the manifest: stored scores are reused while it is equal."""

    async def score_async(self, request: ScoreRequest) -> Scores:
        """As `score`; called in its place where `is_async`."""
        return self.score(request)

    def check_prompts(  # noqa: B027  (a default)
        self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any
    ) -> None:
        """Refuse, before anything is drawn, what cannot score completions of these prompts. By default nothing.

        Args:
            prompts: all of them.
            max_completion_length: most tokens a completion will have.
            tokenizer: the policy's; None where a server has it.

        Raises:
            ConfigError, DataError, ModelError: naming what does not fit.
        """

    def check_group_size(self, size: int) -> int:
        """The most calls to a paid service that a group of `size` completions takes; by default none.

        Raises:
            ConfigError: it cannot score groups of this size.
        """
        return 0

    def inspect(self, request: ScoreRequest) -> list[list[int]] | None:
        """The token ids that a model reads for each completion; None where the reward reads the text itself."""
        return None

    def log_errors_to(self, folder: Path) -> None:  # noqa: B027  (a default)
        """Keep details of failures in this folder from now on. By default there are none to keep."""

    def release(self) -> None:  # noqa: B027  (a default)
        """Free memory, end processes, close files; the next `score` gets them again. By default there are none."""
