"""Texts that end a completion: found as it is drawn, wherever the borders of its tokens lie."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from nonpareil.engines.decoding import completion_texts, first_stop
from nonpareil.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

MARGIN = 8
"""Tokens looked at before those that a stop string can reach: characters and words begin there."""


class StopStrings:
    """The stop strings of a batch of rows, one completion each."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        stop: Sequence[str],
        end_ids: Collection[int],
        prompts: Sequence[Prompt],
    ):
        """`prompts`: of each row."""
        self._tokenizer, self._stop, self._ends = tokenizer, stop, end_ids
        self._prompts = prompts
        self._ids: list[list[int]] = [[] for _ in prompts]
        # A token that is not skipped writes a byte at least.
        self._window = max(len(text.encode()) for text in stop) + MARGIN

    def ended(self, members: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Which of the rows have a stop string with these tokens, each the next one of its row."""
        for row, token in zip(members, tokens, strict=True):
            self._ids[row].append(token)
        return [row for row in members if self._may_end(row) and self._has(row)]

    def _may_end(self, row: int) -> bool:
        """By its last tokens alone, which is quick."""
        ids = [*self._prompts[row].token_ids[-MARGIN:], *self._ids[row][-self._window :]]
        last = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(text in str(last) for text in self._stop)

    def _has(self, row: int) -> bool:
        ids = self._ids[row]
        (text,) = completion_texts(self._tokenizer, self._prompts[row].token_ids, [ids], self._ends)
        return first_stop(text, self._stop) is not None
