"""What `python_tests` reads in a row: its tests, as human-eval, MBPP and their like write them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nonpareil.rewards.verifiers.base import CannotTell, Row, is_empty

if TYPE_CHECKING:
    from nonpareil.user_code.sandbox import Tests


def columns_of_tests(columns: Mapping[str, Any], named: str | None) -> str | None:
    """The column that holds a row's tests; None where none does."""
    if named is not None:
        return named if not _missing(columns, named) else None
    if not _missing(columns, "test") and not _missing(columns, "entry_point"):
        return "test"
    return next((name for name in ("tests", "test_list", "test") if not _missing(columns, name)), None)


def tests_of(row: Row, named: str | None, *, each: bool) -> "Tests":
    """The tests of a row; `each` as `Tests.each`.

    Raises:
        CannotTell: it has none, or they are no text and no list of texts.
    """
    from nonpareil.user_code.sandbox import Tests

    columns = row.columns
    column = columns_of_tests(columns, named)
    if column is None:
        raise CannotTell(f"the row has no tests{f' in {named!r}' if named else ''}")
    value = columns[column]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _from_json(value)
    setup = [*_texts(columns.get("test_imports")), *_texts(columns.get("test_setup_code"))]
    start = _start_of(row)
    entry_point = columns.get("entry_point")
    entry = entry_point.strip() if isinstance(entry_point, str) else ""
    if isinstance(value, str):
        return Tests(program=value, entry_point=entry, start=start, setup=setup, each=each)
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise CannotTell(f"the column {column!r} holds no text and no list of texts")
    asserts = [text for text in value if text.strip()]
    if not any("candidate" in text for text in asserts):  # they name what they call
        entry = ""
    return Tests(asserts=asserts, entry_point=entry, start=start, setup=setup, each=each)


def canonical_of(row: Row, tests: "Tests") -> str:
    """The row's own solution; "" where it has none, or only what continues a prompt that is a conversation here."""
    from nonpareil.user_code.sandbox.completions import is_solution

    value = row.columns.get("canonical_solution")
    if not isinstance(value, str) or not is_solution(value, tuple(tests.names), tests.start):
        return ""
    return value


def _start_of(row: Row) -> str:
    """Code that the model was to continue: a column says so, or the prompt is a text, and maybe code.

    The words of a conversation are never code.
    """
    value = row.columns.get("code_prompt")
    if isinstance(value, str):
        return value
    return row.prompt if isinstance(row.prompt, str) else ""


def _missing(columns: Mapping[str, Any], name: str) -> bool:
    value = columns.get(name)
    return is_empty(value) or (isinstance(value, list | tuple) and not any(map(_is_text, value)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if _is_text(text)]


def _from_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
