"""What others wrote, within Markdown: shown as it is, and never as a heading, a link, a cell's end or HTML."""

import re

from nonpareil.terminal import printable

_MARKS = re.compile(r"[\\`*\[\]<>|$~&#]|(?<!\w)_|_(?!\w)")


def plain(text: str) -> str:
    """The text on one line, as Markdown shows it; a backslash before each mark."""
    return _MARKS.sub(lambda mark: "\\" + mark.group(), printable(text))


def code(text: str) -> str:
    """The text on one line as inline code, also within a table."""
    shown = printable(text) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    room = " " if shown[:1] == "`" or shown[-1:] == "`" else ""
    return f"{fence}{room}{shown}{room}{fence}".replace("|", "\\|")
