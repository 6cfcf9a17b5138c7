"""How long a program runs and what it piles up, looked at from outside while it runs."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

Stop = Literal["", "timeout", "starved", "threads", "files", "output"]
"""Why a program was stopped. `starved`: the machine was too busy to let it run, which tells nothing of it."""
MOST_THREADS = 64
MOST_FILES, MOST_FILE_BYTES = 256, 64 << 20
PATIENCE = 30
"""A program that is kept waiting for a processor may take so many times its timeout by the clock."""


class Watch:
    """One job's processes, the first of which is the program's."""

    def __init__(self, folder: str, timeout: float) -> None:
        """`folder`: the program's own, empty now. `timeout`: seconds that it may run or sleep, from now on."""
        self._folder, self._timeout = folder, timeout
        self._start = time.monotonic()
        self.processes: list[int] = []

    @property
    def seconds(self) -> float:
        """Since the beginning, by the clock."""
        return time.monotonic() - self._start

    def stop(self) -> Stop:
        """Why the job must be stopped now; "" where it may go on."""
        seconds = self.seconds
        if seconds >= self._timeout and seconds - waiting_for_processor(self.processes) >= self._timeout:
            return "timeout"
        if seconds >= PATIENCE * self._timeout:
            return "starved"
        if self.processes and _threads(self.processes[0]) > MOST_THREADS:
            return "threads"
        return "files" if self._too_many_files() else ""

    def _too_many_files(self) -> bool:
        count = size = 0
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    count, size = count + 1, size + entry.stat(follow_symlinks=False).st_size
        return count > MOST_FILES or size > MOST_FILE_BYTES


def waiting_for_processor(processes: Sequence[int]) -> float:
    """Seconds in which these, one at a time, were ready to run and had no processor; 0 where that is not known.

    Not of one with several threads, which keep each other waiting.
    """
    total = 0
    for process in processes:
        if _threads(process) == 1:
            with (
                suppress(OSError, IndexError, ValueError),
                open(f"/proc/{process}/schedstat", encoding="ascii") as file,
            ):
                total += int(file.read().split()[1])
    return total / 1e9


def _threads(process: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{process}/task"))
    return 0
