"""How far a long run is: a bar with rates and the time left, or now and then a line where nobody watches."""

import time
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from nonpareil.terminal import progress_stream

FIRST_LINE_SECONDS = 10.0


class Progress(Protocol):
    """What `draw_and_score` reports to."""

    def start(self, phase: str, total: int) -> None:
        """Begin "draw", "score" or "draw and score" with `total` groups still to do."""
        ...

    def update(self, groups: int, tokens: int) -> None:
        """So many groups and completion tokens more are done."""
        ...


class Silent:
    """Tells nobody."""

    def start(self, phase: str, total: int) -> None:
        """Nothing."""

    def update(self, groups: int, tokens: int) -> None:
        """Nothing."""


class ProgressBar:
    """Groups done, groups/s, tokens/s and time left, on stderr; a context manager.

    A terminal gets a bar. Anything else gets a line when a phase begins, after its first 10 seconds, 20, 40, ...
    and every 10 percent. A phase is what is left to do, so that what an earlier run did counts in no rate.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` is stderr by default, or nowhere where a caller asked for quiet."""
        self._stream = stream or progress_stream()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        if self._stream.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
        self.start("", 0)

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def start(self, phase: str, total: int, unit: str = "groups") -> None:
        """Begin a phase of so many units; rates are of this phase alone."""
        self._unit = unit
        self._phase, self._total = phase, total
        self._groups = self._tokens = self._tenths = 0
        self._began = time.monotonic()
        self._next_line = FIRST_LINE_SECONDS
        if self._bar is not None and total:
            self._task = self._bar.add_task(phase, total=total, rates="")
        elif total:
            print(f"{total} {unit} to {phase}", file=self._stream, flush=True)

    def update(self, groups: int, tokens: int) -> None:
        """So many groups and tokens more are done."""
        self._groups += groups
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, advance=groups, rates=self._rates())
        elif (tenths := 10 * self._groups // max(self._total, 1)) > self._tenths or self._is_due():
            self._tenths = tenths
            done = f"{self._phase} {self._groups}/{self._total} {self._unit}, {self._rates()}"
            if self._groups:
                left = self._elapsed() / self._groups * (self._total - self._groups)
                done += f", {_clock(left)} left"
            print(done, file=self._stream, flush=True)

    def _is_due(self) -> bool:
        """Whether a line is due by the clock; the next one is when twice the time has passed."""
        due = self._elapsed() >= self._next_line
        while self._elapsed() >= self._next_line:
            self._next_line *= 2
        return due

    def _rates(self) -> str:
        groups = f"{self._groups / self._elapsed():.3g} {self._unit}/s"
        return f"{groups}, {self._tokens / self._elapsed():,.0f} tokens/s" if self._tokens else groups

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._began, 1e-6)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
