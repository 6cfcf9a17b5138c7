"""The contract of an engine. Structural: an engine need not inherit from it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nonpareil.records import Draws, Prompt, SamplingParams

PROMPT_CACHE = "prompt_cache"
"""What an engine may say of itself that changes no draw but by rounding; manifests leave it out."""


class Engine(Protocol):
    """Draws completions from a policy."""

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions per prompt, in the order of the prompts.

        The same seed gives the same draws whatever the other prompts of the call.
        `on_progress(prompts, tokens)` is called with what has newly been finished.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Settings that change what is drawn, for the manifest; and `PROMPT_CACHE`, for its reader."""
        ...
