"""`reasoning_gym`: an answer judged by the generator of its problem."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt
from nonpareil.rewards.verifiers.base import CannotTell, Row
from nonpareil.rewards.verifiers.final_answer import final_answer
from nonpareil.rewards.verifiers.gym_rows import check_generator, make_generator
from nonpareil.rewards.verifiers.limited import LimitedVerifier
from nonpareil.settings import option

READS = ("tag", "last_line", "whole")
OPEN, CLOSE = "<answer>", "</answer>"


@dataclass(eq=False)
class ReasoningGym(LimitedVerifier):
    """1 where the generator takes the answer for right, else 0; or its own credit for parts.

    Its rows are those of `reasoning_gym_rows`. Only what follows the last `</think>` is read.
    """

    name = "reasoning_gym"
    packages: ClassVar[tuple[str, ...]] = ("reasoning-gym",)
    extra: ClassVar[str] = "gym"
    revision: ClassVar[int] = 2

    entry_column: str = option("entry", "The column of the problem as JSON, made by reasoning_gym_rows.")
    read: str = option(
        "tag",
        "tag: what the last <answer>...</answer> holds; last_line: the last line that is not empty; whole: all.",
        choices=READS,
    )
    credit: str = option(
        "exact", "exact: 1 or 0; partial: the generator's own number.", choices=("exact", "partial")
    )

    def prepare(self) -> None:
        """Import the generators."""
        import reasoning_gym.factory  # noqa: F401

        self._generators: dict[str, Any] = {}

    def judge(self, row: Row) -> float:
        """From 0 to 1.

        Raises:
            CannotTell: a row that holds no problem, or one of a generator that is refused.
        """
        try:
            entry = _entry(row.columns.get(self.entry_column), self.entry_column)
            generator = self._generator(entry)
        except (ConfigError, DataError) as error:
            raise CannotTell(str(error)) from error
        answer = self._answer(final_answer(row))
        if not answer:
            return 0.0
        credit = float(generator.score_answer(answer, entry))
        return credit if self.credit == "partial" else float(credit >= 1)

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse rows without a problem, and problems whose generator runs what a model writes.

        Raises:
            ConfigError: as `Verifier.check_prompts`, or naming the generator.
            DataError: naming the prompt.
        """
        super().check_prompts(prompts, max_completion_length, tokenizer)
        names = set()
        for prompt in prompts:
            entry = _entry(prompt.columns.get(self.entry_column), self.entry_column, prompt.prompt_id)
            names.add(entry["name"])
        for name in sorted(names):
            check_generator(name)

    def _generator(self, entry: dict[str, Any]) -> Any:
        """The one that made a problem, with the settings that it had."""
        key = json.dumps([entry["name"], entry["config"]], sort_keys=True)
        if key not in self._generators:
            self._generators[key] = make_generator(entry["name"], {**entry["config"], "seed": 0, "size": 1})
        return self._generators[key]

    def _answer(self, text: str) -> str:
        if self.read == "tag":
            _, opened, answer = text.rpartition(OPEN)
            return answer.partition(CLOSE)[0].strip() if opened and CLOSE in answer else ""
        if self.read == "last_line":
            return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        return text.strip()


def _entry(value: Any, column: str, prompt_id: str | None = None) -> dict[str, Any]:
    """The problem that a row holds.

    Raises:
        DataError: naming the column.
    """
    try:
        entry = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        entry = None
    fits = (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("config"), dict)
        and {"answer", "metadata"} <= entry.keys()
    )
    if not fits:
        where = f" of prompt {prompt_id}" if prompt_id else ""
        raise DataError(
            f"reward 'reasoning_gym': the column {column!r}{where} holds no problem; make the rows with "
            "nonpareil.rewards.verifiers.reasoning_gym_rows"
        )
    return entry
