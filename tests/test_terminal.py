"""Nothing that others wrote acts on a terminal or passes for a line of ours."""

import sys
import unicodedata

import pytest

from nonpareil.terminal import printable, printable_lines


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
