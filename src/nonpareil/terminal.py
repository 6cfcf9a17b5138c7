"""What others wrote (prompts, reasons, servers' words, names of files), fit for a terminal and a log."""

import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TextIO

_LONGEST_REASON = 400
_KEPT_REASON = 200
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji; they move nothing


def printable(text: str) -> str:
    r"""The text on one line, with every character that could move, colour, hide or reorder others as its escape.

    A line break becomes `\n`, ESC `\x1b`, a lone surrogate `\ud83d`; letters of any script stay.
    """
    return "".join(_visible(character) for character in text)


def printable_text(text: str) -> str:
    """The same of a text whose line breaks and tabs are its own: what stands in a page, in a place of its own."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def printable_lines(text: str) -> str:
    """The same of a message of ours that has several lines: all but the first are indented, and so remain its own.

    What was put into a message can then neither act on a terminal nor pass for a line that another wrote.
    """
    first, *rest = text.split("\n")
    return "\n".join(
        [printable(first), *(printable(line if line[:1] == " " else f"  {line}") for line in rest)]
    )


def reason_of(error: BaseException) -> str:
    """What another library's error says, on one line of bearable length; with its type where that is needed."""
    text = printable(" ".join(str(error).split())).rstrip(".")
    text = text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def kept_reason(text: str) -> str:
    """A reason that others worded, as it is kept and counted in manifests: one line of at most 200 characters."""
    return printable(text[:_KEPT_REASON])[:_KEPT_REASON]


class PrintableRecord(logging.LogRecord):
    """A log record of any library whose message can neither act on a terminal nor pass for another's line."""

    def getMessage(self) -> str:
        """The message with its arguments."""
        return printable_lines(super().getMessage())


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    if unicodedata.category(character) in ("Co", "Cn"):  # without a meaning, and without an effect
        return character
    return character.encode("unicode_escape").decode("ascii")


_quiet = 0
"""How many callers have asked for quiet."""


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said on stderr within it: messages go to the logger `nonpareil`, as INFO, and progress nowhere."""
    global _quiet
    _quiet += 1
    try:
        yield
    finally:
        _quiet -= 1


def is_quiet() -> bool:
    """Whether a caller asked for quiet."""
    return _quiet > 0


def progress_stream() -> TextIO:
    """Where progress is shown: stderr, or nowhere."""
    return _nowhere() if is_quiet() else sys.stderr


@cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def tell(message: str) -> None:
    """Say something on stderr, on a line of its own; a terminal that is gone is no error."""
    if is_quiet():
        logging.getLogger("nonpareil").info("%s", printable_lines(message))
        return
    with suppress(OSError, ValueError):  # ValueError: closed
        print(f"nonpareil: {printable_lines(message)}", file=sys.stderr, flush=True)
