"""The first traceback of a broken reward: whole in a file of the run's folder, its last frame on the screen."""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from nonpareil.terminal import printable
from nonpareil.user_code.contained import CallFailed

ERROR_LOG = "reward-errors.log"
"""In the output folder; appended to."""


class ErrorLog:
    """Tells of a reward's first failed call and of the first with a traceback; the others are counted nulls."""

    def __init__(self, name: str) -> None:
        """`name`: the reward's."""
        self._name = name
        self._folder: Path | None = None
        self._told: set[bool] = set()

    def keep_in(self, folder: Path) -> None:
        """Write to this folder from now on; without one, only the screen is told."""
        self._folder = folder

    def tell(self, failure: CallFailed) -> None:
        """Warn of a failed call, once, and keep its traceback."""
        if (kind := bool(failure.trace)) in self._told:
            return
        self._told.add(kind)
        place = f" ({failure.place})" if failure.place else ""
        kept = self._append(failure)
        logging.getLogger(__name__).warning(
            f"reward {self._name!r} failed: {failure.reason}{place}; completions it fails on are null{kept}"
        )

    def _append(self, failure: CallFailed) -> str:
        if self._folder is None:
            return ""
        path = self._folder / ERROR_LOG
        lines = [f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} reward {self._name!r}: {failure.reason}"]
        lines += [f"  {printable(line)}" for line in failure.trace.split("\n") if line]
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not through a link that somebody laid there.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(
                os.open(path, flags, 0o644), "w", encoding="utf-8", errors="backslashreplace"
            ) as log:
                log.write("\n".join(lines) + "\n")
            return f"; the traceback is in {printable(str(path))}" if failure.trace else ""
        return f"; {printable(str(path))} could not be written"
