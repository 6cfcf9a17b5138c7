"""The contract of a policy that a command draws from: checked first, loaded only when it must draw."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.engines.base import Engine
from nonpareil.records import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from nonpareil.rollouts.cluster import ShardWorkers


class Policy(ABC):
    """A policy that is known before it is loaded: what it is, what it cannot do, and how to draw from it."""

    tokenizer: "Tokenizer | None"
    """The policy's; None where a server reads the prompts as text."""

    @abstractmethod
    def check(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """Refuse prompts and sampling settings that cannot work, before anything is loaded.

        Raises:
            ConfigError: sampling settings out of their range, or that the engine does not take.
            DataError: a prompt that cannot be drawn from.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What decides the policy, for the manifest: `path`, a label, and what is known of its content."""

    @abstractmethod
    def engine(self, max_tokens_per_batch: int) -> Engine:
        """The engine over the policy; loads the weights. `max_tokens_per_batch`: padding included."""

    def drawn_by(self, max_tokens_per_batch: int) -> "Callable[[], Engine] | ShardWorkers":
        """What `draw_and_score` draws with: by default the engine, loaded when it is first needed."""
        return lambda: self.engine(max_tokens_per_batch)
