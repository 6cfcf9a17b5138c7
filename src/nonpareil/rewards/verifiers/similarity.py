"""`similarity`: sacrebleu's chrF between the answer and a reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.errors import DataError
from nonpareil.records import Prompt
from nonpareil.rewards.verifiers.base import CannotTell, Row, is_empty
from nonpareil.rewards.verifiers.final_answer import final_answer
from nonpareil.rewards.verifiers.limited import LimitedVerifier
from nonpareil.settings import option
from nonpareil.terminal import printable


@dataclass(eq=False)
class Similarity(LimitedVerifier):
    """chrF of the answer to the reference, from 0 to 1; of several references, to the nearest."""

    name = "similarity"
    packages: ClassVar[tuple[str, ...]] = ("sacrebleu",)
    revision: ClassVar[int] = 2

    reference_column: str = option("reference", "The column of the reference, a text or a list of texts.")
    char_order: int = option(6, "The longest run of characters that is compared.", at_least=1, at_most=20)
    word_order: int = option(0, "The longest run of words; 2 makes it chrF++.", at_least=0, at_most=10)
    lowercase: bool = option(False, "Whether case is nothing.")

    def prepare(self) -> None:
        """Import sacrebleu."""
        from sacrebleu.metrics import CHRF

        self._chrf = CHRF(char_order=self.char_order, word_order=self.word_order, lowercase=self.lowercase)

    def judge(self, row: Row) -> float:
        """From 0 to 1.

        Raises:
            CannotTell: the reference is empty or no text.
        """
        references = _texts(row.columns.get(self.reference_column))
        if not references:
            raise CannotTell(f"the column {self.reference_column!r} is empty or no text")
        return self._chrf.sentence_score(final_answer(row), references).score / 100

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse prompts without a reference.

        Raises:
            ConfigError: as `Verifier.check_prompts`.
            DataError: naming the prompt.
        """
        super().check_prompts(prompts, max_completion_length, tokenizer)
        for prompt in prompts:
            if not _texts(value := prompt.columns.get(self.reference_column)):
                raise DataError(
                    f"reward 'similarity': the column {self.reference_column!r} of prompt {prompt.prompt_id} is "
                    f"{printable(repr(value))[:60]}; give a text, or several, that are not empty, or remove the row"
                )


def _texts(value: Any) -> list[str]:
    """The references; none where one of them is empty or no text."""
    texts = value if isinstance(value, list) else [value]
    return texts if texts and all(isinstance(one, str) and not is_empty(one) for one in texts) else []
