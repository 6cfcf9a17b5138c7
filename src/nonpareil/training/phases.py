"""What a step is at while it runs: drawing, scoring or training."""

import sys
from contextlib import suppress

from nonpareil.models.distributed import process_index
from nonpareil.terminal import tell
from nonpareil.training.callbacks import CompactProgress


class StepPhases:
    """Tells of the phases of a step: beside a terminal's bar, else of the first step alone, a line each.

    A step may take minutes, and the first one as long as any: until it is done nothing else says that all is well.
    """

    def __init__(self) -> None:
        """Nothing begun."""
        self.bar: CompactProgress | None = None
        """What is shown of the training's steps; None where that is off."""
        self._first: int | None = None
        self._phase = ""
        self._done = self._total = 0

    def begin(self, phase: str, step: int | None, what: str = "", total: int = 0) -> None:
        """A phase begins: of step `step`, counted from 0, or of none; it does `what`, `total` things one by one."""
        self._phase, self._done, self._total = phase, 0, total
        if process_index():
            return
        if self.bar is not None and self.bar.on_terminal:
            self._show()
            return
        self._first = step if self._first is None else self._first
        if step is not None and step == self._first:
            line = f"step {step + 1}: {phase}{what and ' '}{what}"
            if self.bar is not None:
                self.bar.write(line)
            else:
                tell(line)

    def update(self, things: int, tokens: int) -> None:
        """So many more of the phase's things are done."""
        self._done += things
        if things and not process_index() and self.bar is not None and self.bar.on_terminal:
            self._show()

    def show(self, text: str) -> None:
        """Lines to look at, above the bar where there is one; a terminal that is gone is no error."""
        if self.bar is not None and self.bar.training_bar is not None:
            self.bar.training_bar.write(text, file=self.bar.training_bar.fp)
            return
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)

    def _show(self) -> None:
        assert self.bar is not None
        self.bar.describe(f"{self._phase} {self._done}/{self._total}" if self._total else self._phase)
