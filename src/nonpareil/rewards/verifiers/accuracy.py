"""`accuracy`: whether the answer equals the row's, as math-verify reads both."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.rewards.verifiers.base import CannotTell, Row, is_empty
from nonpareil.rewards.verifiers.final_answer import final_answer
from nonpareil.rewards.verifiers.limited import LimitedVerifier
from nonpareil.settings import option
from nonpareil.terminal import printable

READS = ("latex", "any")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_EXPONENT = re.compile(r"(?P<digits>[-+]?[0-9.]+)[eE](?P<power>[-+]?[0-9]+)")
_FORMULA = re.compile(r"(?<!\\)\$+([^$]+)(?<!\\)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_THIN_SPACE = re.compile(r"(?<=[0-9])\\[,!;: ](?=[0-9]{3}(?![0-9]))")
_MIXED = re.compile(r"\\boxed\{\s*([-+]?[0-9]+)\s+([0-9]+)/([0-9]+)\s*\}")


@dataclass(eq=False)
class Accuracy(LimitedVerifier):
    r"""1 where the answer equals the row's, 0 where it does not or there is none, cut off or not.

    Only what follows the last `</think>` is read. Null where the row's own answer is no mathematics that the
    library reads, and where it fails or takes too long.
    """

    name = "accuracy"
    packages: ClassVar[tuple[str, ...]] = ("math-verify", "latex2sympy2-extended", "sympy")

    answer_column: str = option("answer", "The column of the right answer: a number, plain or LaTeX.")
    read: str = option(
        "latex",
        r"latex: \boxed{}, or LaTeX that is announced (the answer is $2$), as TRL's accuracy_reward; any: also "
        "plain expressions, at last the last number.",
        choices=READS,
    )

    def prepare(self) -> None:
        """Import math-verify, and sympy with it."""
        import math_verify

        self._library = math_verify
        self._configs = self._reading()
        self._parse("1/2")  # builds its tables

    def judge(self, row: Row) -> float:
        """1 or 0.

        Raises:
            CannotTell: the row's answer cannot be read.
        """
        gold = self._gold(row.columns.get(self.answer_column))
        answer = self._parse(final_answer(row))
        if not answer:
            return 0.0
        return float(self._library.verify(gold, answer, timeout_seconds=None, raise_on_error=True))

    def _parse(self, text: str) -> list[Any]:
        # Its time limits are signals; this process has one from outside.
        mode = "any_match" if self.read == "any" else "first_match"
        text = _MIXED.sub(r"\\boxed{\1\\frac{\2}{\3}}", _THIN_SPACE.sub("", text))  # it would add the numbers
        return self._library.parse(
            text, self._configs, extraction_mode=mode, parsing_timeout=None, raise_on_error=True
        )

    def _reading(self) -> list[Any]:
        r"""Boxes before all else, and `\frac12` and `\sqrt2` as LaTeX means them.

        One for both answers: the library keeps the tables of the last that was asked for.
        """
        anywhere = self.read == "any"
        plain = [self._library.ExprExtractionConfig()] if anywhere else []
        latex = self._library.LatexExtractionConfig(
            boxed_match_priority=0, try_extract_without_anchor=anywhere
        )
        return [latex, *plain]

    def _gold(self, value: Any) -> list[Any]:
        """What math-verify makes of the row's answer, which is all mathematics and needs no `$`.

        Raises:
            CannotTell: it is empty, or nothing that can be compared: of what it cannot parse, the library keeps the
                text, which no other way to write the same would equal.
        """
        if is_empty(value) or isinstance(value, bool) or not isinstance(value, str | int | float):
            raise CannotTell(f"the column {self.answer_column!r} holds no answer")
        text = (
            str(value).rpartition("####")[2].strip().removesuffix(".")
        )  # GSM8K has its reasoning before that
        if number := _EXPONENT.fullmatch(text):
            text = rf"{number['digits']} \times 10^{{{number['power']}}}"
        formulas = _FORMULA.findall(text)
        if len(formulas) == 1:
            text = next(filter(None, formulas[0]))
        delimited = r"\boxed" in text or len(formulas) > 1
        gold = self._parse(text if delimited else rf"\boxed{{{text}}}")
        if not gold or isinstance(gold[0], str) or _is_text(text, gold):
            raise CannotTell(f"the answer {printable(text)[:60]!r} is no mathematics that math-verify reads")
        return gold


def _is_text(text: str, gold: Sequence[Any]) -> bool:
    """Whether a word was read as a product of its letters, so that its anagrams would be right."""
    symbols = [str(one).lower() for one in getattr(gold[0], "free_symbols", ())]
    for word in map(str.lower, _WORDS.findall(text)):
        parts = {
            letter for one in symbols if len(one) < len(word) for letter in one
        }  # `do` is one, of dollars
        if set(word) - {"e", "i"} <= parts:
            return True
    return False
