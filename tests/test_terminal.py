"""Nothing that others wrote acts on a terminal or passes for a line of ours."""

import ast
import io
import sys
import unicodedata
from pathlib import Path

import pytest
from rich.table import Table

import nonpareil
from nonpareil.console import PlainConsole, styled
from nonpareil.terminal import PrintableRecord, printable, printable_lines, printable_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a film", "a film"),
        ("ünïcode 電影 \u00a0 \U0001f469\u200d\U0001f680", "ünïcode 電影 \u00a0 \U0001f469\u200d\U0001f680"),
        ("one\ntwo\r\ttab", r"one\ntwo\r\ttab"),
        ("\x1b[31mred\x9b0m\x07", r"\x1b[31mred\x9b0m\x07"),
        ("right\u202eleft\u2066x\u2069", r"right\u202eleft\u2066x\u2069"),
        ("half \ud83d", r"half \ud83d"),
        ("cut\u2028here\u0085", r"cut\u2028here\x85"),
        ("a \\ stays", "a \\ stays"),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown


def test_nothing_that_acts_on_a_terminal_is_left():
    whole = printable("".join(map(chr, range(sys.maxunicode + 1))))
    kinds = {unicodedata.category(character) for character in whole if character not in "\u200c\u200d"}
    assert len(kinds) > 20
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_a_line_of_ours_cannot_be_forged():
    message = printable_lines("reward failed: x\nnonpareil: all is well\n  indented\x1b[2J")
    assert message == "reward failed: x\n  nonpareil: all is well\n  indented\\x1b[2J"


def test_a_text_keeps_its_lines_and_tabs():
    assert printable_text("a\tb\r\n\x1bc") == "a\tb\\r\n\\x1bc"


def test_strings_are_text_on_a_console():
    out = io.StringIO()
    console = PlainConsole(file=out, width=80, force_terminal=True)
    table = Table("[red]head", title="[b]title[/b]")
    table.add_row("[/b]:bomb:\x1b[2J")
    table.add_row(styled("[/b]", "bold"))
    console.print("[/b] [red]x[/red] :bomb: 1 'a'\nnonpareil: done\r")
    console.print(table)
    shown = out.getvalue()
    for text in (
        "[/b] [red]x[/red] :bomb: 1 'a'\n  nonpareil: done\\r",
        "[/b]:bomb:\\x1b[2J",
        "[red]head",
        "[b]title",
    ):
        assert text in shown, shown


def test_a_log_record_is_one_message():
    record = PrintableRecord("x", 30, "file", 1, "%s: %d", ("a\x1b\nnonpareil: done", 3), None)
    assert record.getMessage() == "a\\x1b\n  nonpareil: done: 3"


def test_nothing_is_printed_by_a_bare_console():
    """rich reads markup in every string that its own console is given."""
    package = Path(nonpareil.__file__).parent
    found = [
        f"{path.relative_to(package)}: {ast.unparse(node)}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("Console", "print_json", "rprint")
    ]
    assert found == ["rollouts/progress.py: Console(file=self._stream)"]  # the bar's words are ours
