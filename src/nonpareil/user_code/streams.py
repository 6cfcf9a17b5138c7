"""`streams()`: what a user's code prints goes to stderr, indented and escaped; stdout stays for the command."""

import io
import os
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nonpareil.terminal import printable


@contextmanager
def streams() -> Iterator[None]:
    """The descriptors 0 to 2, and `sys.stdin`, `stdout` and `stderr`. What is printed goes to stderr, indented."""
    before = sys.stdin, sys.stdout, sys.stderr
    _flush(sys.stdout, sys.__stdout__)
    saved: dict[int, int] = {}
    for number in (0, 1, 2):
        with suppress(OSError):  # closed already
            saved[number] = os.dup(number)
    if 1 in saved and 2 in saved:
        os.dup2(2, 1)  # also what C code and programs write: `--json` has stdout for itself
    lines: Any = _Indented(sys.stderr)
    shown = io.TextIOWrapper(lines, "utf-8", errors="backslashreplace", write_through=True)
    sys.stdout = sys.stderr = shown
    try:
        yield
    finally:
        _flush(shown, sys.__stdout__, before[1])
        for number, copy in saved.items():
            with suppress(OSError):
                os.dup2(copy, number, inheritable=True)
                os.close(copy)
        lines.end_line()
        sys.stdin, sys.stdout, sys.stderr = before


class _Indented(io.BufferedIOBase):
    """Bytes to a text stream, each line behind two spaces and without what acts on a terminal."""

    def __init__(self, target: Any) -> None:
        self._target, self._at_start = target, True
        self._decoder = getincrementaldecoder("utf-8")("backslashreplace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, content: Any) -> int:
        *lines, rest = self._decoder.decode(bytes(content)).split("\n")
        for text, end in [*((line, "\n") for line in lines), (rest, "")]:
            if text or end:
                self._put("  " * self._at_start + printable(text) + end)
                self._at_start = bool(end)
        return len(content)

    def end_line(self) -> None:
        if not self._at_start:
            self._put("\n")
            self._at_start = True

    def _put(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # no stderr, or a closed one: no reason to fail
            self._target.write(text)
            self._target.flush()


def _flush(*streams: Any) -> None:
    for stream in streams:
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
