"""Text and JSON of others: what is read, and what is refused because Python would read something else."""

import ast
import json
from pathlib import Path

import pytest

import nonpareil
from nonpareil.errors import DataError
from nonpareil.text_files import check_characters, parse_json, read_lines, read_text

WITHIN = "\u2028\u2029\x85\f\v\x1c\x1d\x1e"
"""What `str.splitlines` takes for the end of a line."""


def test_only_line_feeds_and_carriage_returns_end_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeffone{WITHIN}one\r\ntwo\rthree\n\nfive".encode())
    assert read_lines(path) == [f"one{WITHIN}one", "two", "three", "", "five"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("the film".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ("the film".encode("utf-32"), "it is UTF-32; save it as UTF-8"),
        ("a\nthe film".encode("utf-16-le"), "a NUL byte in line 1"),
        (b"a\ncaf\xe9", "no byte 0xe9 as in line 2"),
    ],
)
def test_another_encoding_is_refused(tmp_path, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' is given twice"),
        ('[{"a": {"x": 1, "x": 1}}]', "key 'x' is given twice"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits; write it as a string"),
        ('{"a": -1e400}', "-1e400 is too large for floating point"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_json_that_would_be_misread_is_refused(text, says):
    with pytest.raises(DataError, match=f"^line 7.*{says}"):
        parse_json(text, "line 7")


def test_json_that_is_read():
    assert parse_json('{"a": [1, 2.5, "\\ud83d\\ude00", null]}', "") == {"a": [1, 2.5, "\U0001f600", None]}
    assert str(parse_json('{"a": NaN}', "")) == "{'a': nan}"  # as Python writes it


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("so good \ud83d", r"column 'x' holds '\\ud83d' at character 8"),
        ([{"b": ["x", "\udc00"]}], r"column 'x'\[0\]\['b'\]\[1\] holds"),
        ({"\ud83d": 1}, r"column 'x', a key holds"),
    ],
)
def test_half_a_character_is_found_at_any_depth(value, place):
    with pytest.raises(DataError, match=place):
        check_characters(value, "column 'x'")
    check_characters([{"b": "\U0001f600 caf\xe9", "c": 3}], "")


def test_every_text_file_is_opened_in_a_stated_encoding():
    """Else a machine's locale decides what is read and written."""
    calls, bare = 0, []
    for path in sorted(Path(nonpareil.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if (
                name in ("read_text", "write_text", "open", "fdopen")
                and owner != "os"
                and name != "safe_open"
            ):
                if name == "read_text" and isinstance(node.func, ast.Name):
                    continue  # ours
                calls += 1
                binary = any(isinstance(word, str) and "b" in word and len(word) < 4 for word in words)
                if not binary and not any(keyword.arg == "encoding" for keyword in node.keywords):
                    bare.append(f"{path.name}:{node.lineno}")
    assert calls > 15
    assert not bare


def test_json_of_ours_is_read_back():
    assert parse_json(json.dumps({"a": [1.5, "caf\xe9"]}), "") == {"a": [1.5, "caf\xe9"]}
