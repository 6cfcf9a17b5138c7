"""What others wrote is neither markup nor HTML in Markdown."""

import pytest

from nonpareil.markdown import code, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("my-model_1.5", "my-model_1.5"),
        ("a|b", r"a\|b"),
        ("_mine_", r"\_mine\_"),
        ("x\n# y", r"x\\n\# y"),
        ("<b>[a](b)`", r"\<b\>\[a\](b)\`"),
        ("\x1b\u202e", r"\\x1b\\u202e"),
    ],
)
def test_plain(text, shown):
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("org/m", "`org/m`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("a|b", r"`a\|b`"),
        ("", "` `"),
        ("x\n", r"`x\n`"),
    ],
)
def test_code(text, shown):
    assert code(text) == shown
