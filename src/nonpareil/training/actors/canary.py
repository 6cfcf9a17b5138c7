"""The sequences that show whether another engine holds the weights it was given."""

from collections.abc import Sequence

from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Prompt

CANARIES, CANARY_TOKENS = 3, 8


def canary_sequences(prompts: Sequence[Prompt], max_completion_length: int) -> TokenSequences:
    """A few short prompts, each followed by the beginning of another: any tokens will do.

    One token of the window stays free, which vLLM needs for scoring.
    """
    length = min(CANARY_TOKENS, max_completion_length - 1)  # at least 1: `checks` refuses less
    shortest = sorted(prompts, key=lambda prompt: len(prompt.token_ids))[:CANARIES]
    ids = [prompt.token_ids for prompt in shortest]
    return TokenSequences(ids, [other[:length] for other in reversed(ids)])
