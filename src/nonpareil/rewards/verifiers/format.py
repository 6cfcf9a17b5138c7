"""`format`: whether an answer has its think and answer tags, what its prompt wrote of it included."""

from dataclasses import dataclass

from nonpareil.rewards.verifiers.base import CannotTell, Row, Verifier
from nonpareil.rewards.verifiers.final_answer import opening_of
from nonpareil.settings import option

STYLES = ("think", "think_answer", "answer")


@dataclass(eq=False)
class Format(Verifier):
    """1 where the answer has the tags of its style, each once and in order, else 0.

    Read is what the prompt wrote of the answer (a template that begins it with `<think>`), then the completion.
    """

    name = "format"

    style: str = option(
        "think",
        "think: <think>...</think> and then anything, as TRL's think_format_reward; think_answer: then "
        "<answer>...</answer> and nothing else; answer: one <answer>...</answer> with words in it.",
        choices=STYLES,
    )
    think_tag: str = option("think", "The name of the tag around thoughts.")
    answer_tag: str = option("answer", "The name of the tag around the answer.")

    def judge(self, row: Row) -> float:
        """1 or 0.

        Raises:
            CannotTell: it is not known what the prompt wrote of the answer, and that decides.
        """
        opening = opening_of(row)
        if opening is not None:
            return float(self._holds(opening + row.completion))
        as_it_is = self._holds(row.completion)
        if self._holds(f"<{self.think_tag}>\n{row.completion}") != as_it_is:
            raise CannotTell(f"whether the prompt wrote <{self.think_tag}> is not known")
        return float(as_it_is)

    def _holds(self, text: str) -> bool:
        if self.style == "answer":
            return self._has_answer(text)
        opened = f"<{self.think_tag}>"
        closed = f"</{self.think_tag}>"
        if not text.startswith(opened) or text.count(opened) > 1 or closed not in text:
            return False
        if self.style == "think":
            return True
        _, _, rest = text.partition(closed)
        rest = rest.strip()
        return (
            text.count(closed) == 1
            and rest.startswith(f"<{self.answer_tag}>")
            and rest.endswith(f"</{self.answer_tag}>")
            and self._has_answer(text)
        )

    def _has_answer(self, text: str) -> bool:
        opened, closed = f"<{self.answer_tag}>", f"</{self.answer_tag}>"
        start, end = text.find(opened), text.find(closed)
        once = text.count(opened) == text.count(closed) == 1
        return once and start < end and bool(text[start + len(opened) : end].strip())
