"""The terminal that results are shown on: a string is shown as it is, whatever it holds."""

from typing import Any

from rich.console import Console
from rich.text import Text

from nonpareil.terminal import is_quiet, printable, printable_lines


class PlainConsole(Console):
    """rich's console without its reading of strings: `[red]` and `:bomb:` in one, or in a table's cell, are text.

    What would act on a terminal is shown as its escape, and further lines of a string are indented. What shall be
    in bold or in colour is given as `style`, or as `styled`.
    """

    def __init__(self, **settings: Any) -> None:
        """`settings` are rich's."""
        super().__init__(**settings, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """What rich makes of every string that it is given."""
        settings |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(printable_lines(text), **settings)


def console(**settings: Any) -> PlainConsole:
    """Standard error: standard output is for `--json`."""
    return PlainConsole(stderr=True, **{"quiet": is_quiet(), **settings})


def styled(text: str, style: str) -> Text:
    """A string for a cell or a line, on any console of rich's."""
    return Text(printable(text), style)
