"""What reward models have in common, whatever runs them: text becomes ids, and equal ids are scored once."""

from collections.abc import Sequence
from typing import Any

from nonpareil.records import Prompt, ScoreRequest
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
