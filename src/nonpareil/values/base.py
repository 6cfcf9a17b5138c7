"""What a value of prefixes is, whoever knows it: a network of ours or a user's own."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.models.logprobs import TokenSequences


@runtime_checkable
class PrefixValue(Protocol):
    """V(s) = log E_ref[W | s] - log E_ref[W | prompt], nats: what a prefix s makes of a target's weight W.

    It is that of one target and of one reference, whose tokens and futures it is about. After an end token it is
    the value of the finished completion.
    """

    def prefix_values(self, sequences: TokenSequences) -> Float[Tensor, "b t+1"]:
        """V after each number of tokens of each completion: first 0, before any; 0 behind the completion's end.

        t is the longest completion.
        """
        ...

    def candidate_values(
        self, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"]
    ) -> Float[Tensor, "b t k"]:
        """V of prompt, the first tokens of the completion, and one candidate; 0 behind the completion's end.

        A candidate at position t follows the first t tokens. `token_ids` behind the end are not looked at.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """All that decides the values, as JSON has it."""
        ...
