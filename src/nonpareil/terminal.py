"""What others wrote (prompts, reasons, servers' words, names of files), fit for a terminal and a log."""

import sys
import unicodedata
from contextlib import suppress

_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji; they move nothing


def printable(text: str) -> str:
    r"""The text on one line, with every character that could move, colour, hide or reorder others as its escape.

    A line break becomes `\n`, ESC `\x1b`, a lone surrogate `\ud83d`; letters of any script stay.
    """
    return "".join(_visible(character) for character in text)


def printable_lines(text: str) -> str:
    """The same of a message of ours that has several lines: all but the first are indented, and so remain its own.

    What was put into a message can then neither act on a terminal nor pass for a line that another wrote.
    """
    first, *rest = text.split("\n")
    return "\n".join(
        [printable(first), *(printable(line if line[:1] == " " else f"  {line}") for line in rest)]
    )


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    if unicodedata.category(character) in ("Co", "Cn"):  # without a meaning, and without an effect
        return character
    return character.encode("unicode_escape").decode("ascii")


def tell(message: str) -> None:
    """Say something on stderr, on a line of its own; a terminal that is gone is no error."""
    with suppress(OSError, ValueError):  # ValueError: closed
        print(f"nonpareil: {printable_lines(message)}", file=sys.stderr, flush=True)
