"""What reward models have in common, whatever runs them: text becomes ids, and equal ids are scored once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from nonpareil.records import Prompt, ScoreRequest, Scores
from nonpareil.rewards.base import Reward
from nonpareil.rewards.models.encoding import EncodedText, RewardEncoder


class ClassifierReward(Reward):
    """A classifier with one label, whose logit is the reward; a subclass says what runs it."""

    encoder: RewardEncoder
    """Made by the subclass; its tokenizer is the reward model's own."""
    truncated: int = 0
    """Texts that were shortened to be scored, since construction."""

    def inspect(self, request: ScoreRequest) -> list[list[int]]:
        """The exact token ids scored for each completion, special tokens included; empty where none can be.

        Raises:
            DataError: an over-long text under `overlong="error"`, or one the chat template refuses.
            ModelError: a conversation, and no chat template.
        """
        return [text.token_ids for text in self.encoder.encode(request)]

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """See `RewardEncoder.check_prompts`."""
        self.encoder.check_prompts(prompts, max_completion_length, tokenizer)

    def _encoded(self, request: ScoreRequest) -> list[EncodedText]:
        """The texts to score; counts those that were shortened."""
        encoded = self.encoder.encode(request)
        self.truncated += sum(text.truncated for text in encoded)
        return encoded


def score_once(
    encoded: Sequence[EncodedText], score_rows: Callable[[list[tuple[int, ...]]], list[float]]
) -> Scores:
    """Each text's logit; None where it is not finite or the text cannot be scored.

    Equal texts are scored once: less work, and they tie exactly whatever a batch does to rounding.
    """
    unique = list(dict.fromkeys(tuple(text.token_ids) for text in encoded if text.failure is None))
    logits = dict(zip(unique, score_rows(unique), strict=True))
    values, failures = [], []
    for text in encoded:
        value = logits.get(tuple(text.token_ids), math.nan)
        failure = text.failure or (None if math.isfinite(value) else f"score is {value}")
        values.append(value if failure is None else None)
        failures.append(failure)
    return Scores(values, failures)
