"""What a verifier is: a row of a dataset and a completion in, a number out, or None where it could not tell."""

import importlib.metadata
import traceback
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, PromptText, ScoreRequest, Scores, text_of
from nonpareil.rewards.base import Reward
from nonpareil.rewards.functions.error_log import ErrorLog
from nonpareil.settings import CheckedOptions, settings_of
from nonpareil.terminal import kept_reason, printable, reason_of
from nonpareil.user_code.contained import CallFailed

Verdict = tuple[float | None, str | None]
"""A value, or None and the reason."""


class CannotTell(Exception):
    """Raised by `judge`: this completion's reward is null, for this reason. No failure, and no traceback kept."""


@dataclass(frozen=True)
class Row:
    """One completion with what is known of it."""

    prompt: PromptText
    completion: str
    """Its own text, of a string or of a message."""
    completion_ids: list[int]
    """Empty where a server gave none; the end token included where it was drawn."""
    columns: dict[str, Any]
    """The dataset's further columns."""
    opening: str | None
    """What of the answer the prompt wrote already; None where that is not known."""
    finish_reason: str | None = None
    """`stop` or `length`; None where that is not known."""


@dataclass(eq=False)
class Verifier(CheckedOptions, Reward):
    """A reward that judges one completion at a time, by a rule.

    A subclass is a dataclass (`eq=False`) whose fields are its settings, declared by `settings.option`. A setting
    whose name ends in `_column` is a column that it reads: prompts without it are refused. It has `name`, the
    column's, and `judge`. What `judge` raises makes that completion null with its reason, never its neighbours and
    never 0. One that runs others' code on what a model wrote inherits `LimitedVerifier`, which ends in time.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that it needs; their versions are part of what it says of itself."""
    extra: ClassVar[str] = "verifiers"
    """Of this package: what installs them."""
    revision: ClassVar[int] = 1
    """Raised where the same completion gets another value than in an earlier version."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be, and packages that are not there.

        Raises:
            ConfigError: naming the setting or the package.
        """
        super().__post_init__()
        self._versions = {package: self._version(package) for package in self.packages}
        self._errors = ErrorLog(self.name)

    @abstractmethod
    def judge(self, row: Row) -> float:
        """The reward of one completion; higher is better.

        Raises:
            CannotTell: with the reason, where it cannot be told.
        """

    def judge_all(self, rows: Sequence[Row]) -> list[Verdict]:
        """One verdict per row, in their order; by default each by `judge`, in this process."""
        return [self._contained(row) for row in rows]

    def score(self, request: ScoreRequest) -> Scores:
        """One value per completion, or None with its reason."""
        verdicts = self.judge_all(rows_of(request))
        return Scores([value for value, _ in verdicts], [reason for _, reason in verdicts])

    def describe(self) -> dict[str, Any]:
        """All settings, and the versions of what decides with them."""
        settings = {name: getattr(self, name) for name in settings_of(type(self))}
        return {
            "name": self.name,
            "kind": "verifier",
            "revision": self.revision,
            "settings": settings,
            "packages": self._versions,
        }

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse prompts without the columns that it reads.

        Raises:
            ConfigError: naming the column, and those there are.
            DataError: a column without a single value.
        """
        for setting, column in self.columns_read().items():
            there = [prompt.columns[column] for prompt in prompts if column in prompt.columns]
            if prompts and not there:
                has = ", ".join(map(printable, prompts[0].columns)) or "none"
                raise ConfigError(
                    f"reward {self.name!r} reads the column {column!r}, which the prompts lack (they have: {has}); "
                    f"add it, or name another ({self.name}:{setting}=...)"
                )
            if prompts and all(is_empty(value) for value in there):
                raise DataError(
                    f"reward {self.name!r}: the column {column!r} is empty in every row; fill it, or name another "
                    f"({self.name}:{setting}=...)"
                )

    def columns_read(self) -> dict[str, str]:
        """The columns that it cannot do without, by the setting that names each."""
        return {
            name: getattr(self, name)
            for name in settings_of(type(self))
            if name.endswith("_column") and getattr(self, name) is not None
        }

    def log_errors_to(self, folder: Path) -> None:
        """Append the first traceback to `reward-errors.log` there."""
        self._errors.keep_in(folder)

    def _contained(self, row: Row) -> Verdict:
        value, reason, trace = contained_verdict(self, row)
        self._tell(reason, trace)
        return value, reason

    def _tell(self, reason: str | None, trace: str) -> None:
        if trace:
            self._errors.tell(CallFailed(reason or "", trace=trace))

    def _version(self, package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(
                f"reward {self.name!r} needs {package}, which is not installed: "
                f'pip install "nonpareil[{self.extra}]"'
            ) from error


def contained_verdict(verifier: Verifier, row: Row) -> tuple[float | None, str | None, str]:
    """The value, or None and the reason; and the traceback of what was raised, empty where that was on purpose."""
    try:
        return float(verifier.judge(row)), None, ""
    except CannotTell as unknown:
        return None, kept_reason(str(unknown)), ""
    except Exception as error:  # noqa: BLE001  (a library of others on a text of anybody's)
        return None, kept_reason(reason_of(error)), "".join(traceback.format_exception(error))[-20_000:]


def rows_of(request: ScoreRequest) -> list[Row]:
    """The request, completion by completion."""
    openings = request.openings or [None] * len(request)
    finish_reasons: Sequence[str | None] = request.finish_reasons or [None] * len(request)
    return [
        Row(
            request.prompts[place],
            text_of(request.completions[place]),
            request.completion_ids[place],
            {name: values[place] for name, values in request.columns.items()},
            openings[place],
            finish_reasons[place],
        )
        for place in range(len(request))
    ]


def is_empty(value: Any) -> bool:
    """Whether a column's value says nothing."""
    return value is None or (isinstance(value, str) and not value.strip())
