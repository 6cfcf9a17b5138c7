"""A verifier that runs others' code on what a model wrote, in a process of its own and within limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonpareil.rewards.verifiers.base import Row, Verdict, Verifier
from nonpareil.settings import option

if TYPE_CHECKING:
    from nonpareil.rewards.verifiers.worker import JudgingProcess


@dataclass(eq=False)
class LimitedVerifier(Verifier):
    """`judge` runs in a process of its own, which is killed when a completion takes too long.

    That completion is null with its reason, as one that asks for too much memory or crashes, and the others are
    judged. A subclass stands in a module, and imports what it needs in `prepare`, which counts for no completion's
    time.
    """

    timeout: float = option(10.0, "Seconds for one completion; then its reward is null.", above=0)

    def __post_init__(self) -> None:
        """See the class."""
        super().__post_init__()
        self._process: JudgingProcess | None = None

    def prepare(self) -> None:
        """Import what `judge` needs, in its process."""

    def judge_all(self, rows: Sequence[Row]) -> list[Verdict]:
        """One verdict per row, in their order."""
        if not rows:
            return []
        verdicts = self._started().judge(rows)
        for _, reason, trace in verdicts:
            self._tell(reason, trace)
        return [(value, reason) for value, reason, _ in verdicts]

    def release(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None:
            self._process.stop()

    def __getstate__(self) -> dict[str, Any]:
        """All but the process, which is this one's alone."""
        return {**vars(self), "_process": None}

    def _started(self) -> "JudgingProcess":
        if self._process is None:
            from nonpareil.rewards.verifiers.worker import JudgingProcess

            self._process = JudgingProcess(self, self.timeout)
        return self._process
