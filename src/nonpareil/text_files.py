"""Text and JSON that others wrote: UTF-8, with or without a byte order mark, and nothing misread in silence."""

import codecs
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonpareil.errors import DataError
from nonpareil.terminal import printable

_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16's, which begins it
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        DataError: UTF-16 or UTF-32, bytes that are no UTF-8, or NUL bytes, which no text holds.
        OSError: it cannot be read.
    """
    content, where = path.read_bytes(), f"{str(path)!r} cannot be read as {path.suffix[1:] or 'text'}"
    for mark, encoding in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise DataError(f"{where}: it is {encoding}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}: 'utf-8' text has no byte 0x{content[error.start]:02x} as in line {line}; save it as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{where}: a NUL byte in line {line}; is it UTF-16? Save it as UTF-8")
    return text


def read_lines(path: Path) -> list[str]:
    r"""The lines of a text file; `\n`, `\r\n` and `\r` end one, and nothing else does.

    U+2028, U+0085, form feeds and their like may stand within a prompt, and `splitlines()` would cut it there.

    Raises:
        DataError, OSError: as `read_text`.
    """
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def parse_json(text: str, where: str) -> Any:
    """What JSON says, or a refusal where Python would read something else from it.

    `NaN` and `Infinity`, which Python itself writes, are read.

    Raises:
        DataError: no JSON, a key given twice in one object, a number beyond floating point or of more digits than
            Python converts, or nesting too deep; `where` says which file or line.
    """

    def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{where}: key {twice!r} is given twice; remove one")
        return row

    def finite(digits: str) -> float:
        if math.isinf(number := float(digits)):
            raise DataError(f"{where}: the number {printable(digits):.40} is too large for floating point")
        return number

    try:
        return json.loads(text, object_pairs_hook=single, parse_float=finite)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deep to be read") from error
    except ValueError as error:  # an integer of more digits than Python converts
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: {str(error).split(';')[0]}; write it as a string") from error


def check_characters(value: Any, where: str) -> None:
    r"""Refuse half a character, a lone surrogate such as `\ud83d`: no UTF-8 file holds it, no tokenizer reads it.

    `value` may be text, or lists and mappings of it at any depth; `where` says what it is.

    Raises:
        DataError: naming the place within the value.
    """
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_characters(key, f"{where}, a key")
            check_characters(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            check_characters(inner, f"{where}[{place}]")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds {text[error.start]!r} at character {error.start}: one half of a character, which is no "
            "text; write the whole character, or remove it"
        ) from error
