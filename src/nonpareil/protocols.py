"""What the floors above ask of engines and rewards. Structural: nothing needs to inherit from these."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nonpareil.records import Draws, Prompt, SamplingParams, ScoreRequest, Scores


class Engine(Protocol):
    """Draws completions from a policy."""

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions a prompt, in the order of the prompts.

        The same seed gives the same draws whatever the other prompts of the call.
        `on_progress(prompts, tokens)` is called with what has newly been finished.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Settings that change what is drawn, for the manifest."""
        ...


class Reward(Protocol):
    """Scores completions; higher is better."""

    @property
    def name(self) -> str:
        """The `<name>` of the column `rewards/<name>`."""
        ...

    def score(self, request: ScoreRequest) -> Scores:
        """One value a completion, or None with its reason; never a number that stands for a failure."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores, for the manifest."""
        ...
