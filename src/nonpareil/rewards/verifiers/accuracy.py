"""`accuracy`: whether the answer equals the row's, as math-verify reads both."""

import re
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

READS = ("latex", "any")
_WORDS = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|(?:[ckm]m|kg)(?![A-Za-z]))")  # a unit alone is dropped
_EXPONENT = re.compile(r"(?P<digits>[-+]?[0-9.]+)[eE](?P<power>[-+]?[0-9]+)")
_FORMULA = re.compile(r"(?<!\\)\$+([^$]+)(?<!\\)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_THIN_SPACE = re.compile(r"(?<=[0-9])\\[,!;: ](?=[0-9]{3}(?![0-9]))")
_SPACE = r"(?:\s|~|\\[,!;: ])"
_MIXED = re.compile(rf"\\boxed\{{\s*([-+]?[0-9]+){_SPACE}+([0-9]+)/([0-9]+)(?![0-9./])")
_BOX = re.compile(r"\\boxed\{[^{}]*\}|(?<![\\$])\$[^$\n{}]*\$")
_THOUSANDS = re.compile(rf"(?<=[0-9]){_SPACE}(?=[0-9]{{3}}(?![0-9]))")
_APART = re.compile(rf"(?<=[0-9]){_SPACE}+(?=[0-9])")


@dataclass(eq=False)
class Accuracy(LimitedVerifier):
    r"""1 where the answer equals the row's, 0 where it does not or there is none, cut off or not.

    Only what follows the last `</think>` is read. Null where the row's own answer is no mathematics that the
    library reads, and where it fails or takes too long.
    """

    name = "accuracy"
    packages: ClassVar[tuple[str, ...]] = ("math-verify", "latex2sympy2-extended", "sympy")
    revision: ClassVar[int] = 2

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

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse prompts of which none has an answer that can be one.

        Raises:
            ConfigError, DataError: as `Verifier.check_prompts`, or naming what stands in the column.
        """
        super().check_prompts(prompts, max_completion_length, tokenizer)
        column = self.answer_column
        values = [value for prompt in prompts if not is_empty(value := prompt.columns.get(column))]
        if values and not any(map(_may_be_answer, values)):
            raise DataError(
                f"reward {self.name!r}: the column {column!r} has no number and no text in any row, but "
                f"{printable(repr(values[0]))[:60]}; give each row's answer as one text"
            )

    def _parse(self, text: str) -> list[Any]:
        # Its time limits are signals; this process has one from outside.
        mode = "any_match" if self.read == "any" else "first_match"
        text = _BOX.sub(lambda box: _APART.sub(",", _THOUSANDS.sub("", box[0])), _without_thin_spaces(text))
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
        if is_empty(value) or not _may_be_answer(value):
            raise CannotTell(f"the column {self.answer_column!r} holds no answer")
        text = (
            str(value).rpartition("####")[2].strip().removesuffix(".")
        )  # GSM8K has its reasoning before that
        if number := _EXPONENT.fullmatch(text):
            text = rf"{number['digits']} \times 10^{{{number['power']}}}"
        formulas, start = _FORMULA.findall(text), text.find(r"\boxed")
        if start >= 0:  # a solution: whatever it says before
            text = text[start:]
        elif len(formulas) == 1:
            text = next(filter(None, formulas[0]))
        delimited = start >= 0 or len(formulas) > 1
        boxed = text if delimited else rf"\boxed{{{text}}}"
        boxes = _BOX.findall(_without_thin_spaces(boxed))
        unclear = any(map(_APART.search, boxes))  # a list, or one number
        gold = [] if unclear else self._parse(boxed)
        if not gold or isinstance(gold[0], str) or _is_text(text, gold):
            raise CannotTell(f"the answer {printable(text)[:60]!r} is no mathematics that math-verify reads")
        return gold


def _without_thin_spaces(text: str) -> str:
    """With `12\\,345` as one number, and `1 1/2` as one and a half; math-verify adds numbers that stand apart."""
    return _MIXED.sub(r"\\boxed{\1\\frac{\2}{\3}", _THIN_SPACE.sub("", text))


def _may_be_answer(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


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
