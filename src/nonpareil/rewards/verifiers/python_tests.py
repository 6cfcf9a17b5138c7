"""`python_tests`: whether the program in an answer satisfies its row's tests, run in a sandbox."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt
from nonpareil.rewards.verifiers.base import CannotTell, Row, Verdict, Verifier
from nonpareil.rewards.verifiers.final_answer import final_answer
from nonpareil.rewards.verifiers.python_tests_rows import canonical_of, columns_of_tests, tests_of
from nonpareil.settings import option
from nonpareil.terminal import printable

if TYPE_CHECKING:
    from nonpareil.user_code.sandbox import Sandbox, Tests
    from nonpareil.user_code.sandbox import Verdict as Found

SCORES = ("all", "fraction")


@dataclass(eq=False)
class PythonTests(Verifier):
    """1 where the answer's program passes all tests of its row, 0 where it does not, has no program or never ends.

    Only what follows the last `</think>` is read. Null where the row has no tests, where they are broken (they do
    not parse, assert nothing, are pytest's functions, lack a module, or fail the row's `canonical_solution`), and
    where the sandbox fails.
    """

    name: ClassVar[str] = "python_tests"  # type: ignore[misc]
    revision: ClassVar[int] = 2

    score_by: str = option(
        "all",
        "all: 1 where every test holds, else 0; fraction: the share of tests that hold.",
        choices=SCORES,
    )
    tests_column: str | None = option(
        None,
        "The column of tests: a list of assertions, or a program, whose check(candidate) is called with what the "
        "column entry_point names. Default: the first of test (beside entry_point), tests, test_list, test.",
    )
    timeout: float = option(
        10.0, "Seconds that a program may run or sleep; one that has not ended by then is wrong.", above=0
    )
    memory_mb: int = option(1024, "MiB of address space for a program.", at_least=64)
    workers: int | None = option(None, "Programs at once. Default: one per processor.", at_least=1)
    allow_unsandboxed: bool = option(
        False,
        "Run programs though the kernel cannot cut them off from files and network: with your own rights.",
    )

    def __post_init__(self) -> None:
        """See the class."""
        super().__post_init__()
        self._sandbox: Sandbox | None = None
        self._canonical: dict[tuple[Any, ...], str | None] = {}
        """Of tests with a canonical solution: what is wrong with them, None where it passes."""

    def judge(self, row: Row) -> float:
        """The value of one completion; raises CannotTell where it is null."""
        value, reason = self.judge_all([row])[0]
        if value is None:
            raise CannotTell(reason or "")
        return value

    def judge_all(self, rows: Sequence[Row]) -> list[Verdict]:
        """One verdict per row; the programs run several at a time."""
        tests: dict[int, Tests] = {}
        verdicts: dict[int, Verdict] = {}
        for place, row in enumerate(rows):
            try:
                tests[place] = tests_of(row, self.tests_column, each=self.score_by == "fraction")
            except CannotTell as unknown:
                verdicts[place] = None, str(unknown)
        self._try_canonical([(rows[place], of_row) for place, of_row in tests.items()])
        for place, of_row in list(tests.items()):
            if broken := self._canonical.get(_key(of_row, canonical_of(rows[place], of_row))):
                verdicts[place] = None, broken
                del tests[place]
        found = self._started().judge([(final_answer(rows[place]), one) for place, one in tests.items()])
        for place, one in zip(tests, found, strict=True):
            verdicts[place] = self._valued(one)
        return [verdicts[place] for place in range(len(rows))]

    def check_prompts(self, prompts: Sequence[Prompt], max_completion_length: int, tokenizer: Any) -> None:
        """Refuse prompts without tests, and a machine that cannot run a model's programs apart from all else.

        Raises:
            ConfigError: naming the columns, or what the kernel lacks.
            DataError: the named column is empty in every row, or no row has tests that can be read.
            RewardError: the sandbox does not start, or runs no program.
        """
        super().check_prompts(prompts, max_completion_length, tokenizer)
        if prompts and not any(columns_of_tests(prompt.columns, self.tests_column) for prompt in prompts):
            has = ", ".join(map(printable, prompts[0].columns)) or "none"
            raise ConfigError(
                f"reward {self.name!r} reads the column test with entry_point, tests, or test_list, and the "
                f"prompts have none of them (they have: {has}); add one, or name it ({self.name}:tests_column=...)"
            )
        if prompts and all(unread := [self._unread(prompt) for prompt in prompts]):
            raise DataError(f"reward {self.name!r} can judge no row: {unread[0]}")
        if (ran := self._started().run("print(6 * 7)")).stdout != "42\n":
            raise ConfigError(
                f"reward {self.name!r}: the sandbox runs no program here: {ran.stderr[-200:]!r}"
            )

    def describe(self) -> dict[str, Any]:
        """All settings but `workers`, and Python's version, by which programs mean what they mean."""
        said = super().describe()
        said["settings"].pop("workers")
        return {**said, "python": ".".join(map(str, sys.version_info[:2]))}

    def release(self) -> None:
        """End the sandbox; the next call starts another."""
        if self._sandbox is not None:
            self._sandbox.close()

    def __getstate__(self) -> dict[str, Any]:
        """All but the sandbox, which is this process's alone."""
        return {**vars(self), "_sandbox": None}

    def _started(self) -> "Sandbox":
        if self._sandbox is None:
            from nonpareil.user_code.sandbox import Sandbox

            self._sandbox = Sandbox(
                timeout=self.timeout,
                memory_mb=self.memory_mb,
                workers=self.workers,
                allow_unsandboxed=self.allow_unsandboxed,
            )
        return self._sandbox

    def _unread(self, prompt: Prompt) -> str:
        """Why a row's tests cannot be read; "" where they can."""
        try:
            tests_of(Row(prompt.prompt, "", [], prompt.columns, None), self.tests_column, each=False)
        except CannotTell as unknown:
            return str(unknown)
        return ""

    def _valued(self, found: "Found") -> Verdict:
        if found.failure is not None:
            return None, found.failure
        return (found.held / found.total if self.score_by == "fraction" else float(found.passed)), None

    def _try_canonical(self, pairs: Sequence[tuple[Row, "Tests"]]) -> None:
        """Run each row's own solution on its tests, once: where it fails, they say nothing of another's."""
        new = {
            _key(tests, canonical): (canonical, tests)
            for row, tests in pairs
            if (canonical := canonical_of(row, tests)) and _key(tests, canonical) not in self._canonical
        }
        for key, found in zip(new, self._started().judge(list(new.values())), strict=True):
            reason = found.failure or f"the tests fail the row's canonical_solution: {found.reason}"
            if found.passed or found.failure is None or "broken" in found.failure:
                self._canonical[key] = None if found.passed else reason


def _key(tests: "Tests", canonical: str) -> tuple[Any, ...]:
    return (*tests.asserts, tests.program, tests.entry_point, tests.start, *tests.setup, canonical)
