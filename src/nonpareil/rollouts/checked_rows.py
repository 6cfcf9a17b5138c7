"""Rows of prompts, checked one by one: what a prompt is, and what may ride along."""

from collections.abc import Iterable, Mapping
from typing import Any

from nonpareil.errors import DataError
from nonpareil.records import Message, PromptText
from nonpareil.setting_types import nearest_name
from nonpareil.text_files import check_characters

_USUAL = ("question", "instruction", "query", "problem", "text", "input")
"""What columns of prompts are often called."""


class PromptRow(dict[str, Any]):
    """A row of `prompt` and further columns that knows its position in the dataset, whatever was shuffled."""

    def __init__(self, values: Mapping[str, Any], position: int) -> None:
        """`position` counts the source's rows from 0."""
        super().__init__(values)
        self.position = position


def checked_prompt(prompt: Any, where: str) -> PromptText:
    """The prompt itself, its messages reduced to role and content.

    Raises:
        DataError: empty, neither a string nor a list of {role, content}, or with half a character; `where` says
            which.
    """
    check_characters(prompt, f"{where}: the prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{where}: the prompt is empty; remove the row")
        return prompt
    if not isinstance(prompt, list):
        raise DataError(
            f"{where}: the prompt is a {type(prompt).__name__} ({prompt!r:.60}); it must be a string or a "
            "list of {role, content} messages"
        )
    messages = [_checked_message(message, where) for message in prompt]
    if not any(message["content"].strip() for message in messages):
        raise DataError(f"{where}: the prompt is empty; remove the row")
    return messages


def _checked_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping) or not all(
        isinstance(message.get(k), str) for k in ("role", "content")
    ):
        raise DataError(f"{where}: {message!r:.80} is no message of {{role, content}} with two strings")
    # `datasets` fills keys that other messages have with None.
    further = sorted(
        key for key, value in message.items() if key not in ("role", "content") and value is not None
    )
    if further:
        raise DataError(f"{where}: a message has {further[0]!r} beside role and content; remove it")
    return {"role": message["role"], "content": message["content"]}


def check_columns(columns: Mapping[Any, Any], where: str) -> None:
    """What rides along is written to disk and handed to rewards by name."""
    for name, value in columns.items():
        if not isinstance(name, str):
            raise DataError(f"{where}: a column is called {name!r}, which is no text; rename it")
        check_characters(name, f"{where}: a column's name")
        check_characters(value, f"{where}: column {name!r}")


def check_column(names: Iterable[str], column: str, where: str, remedy: str) -> None:
    """Refuse rows that lack the column of prompts, with the one that is probably meant.

    `remedy`: how to take another, with {} for its name.

    Raises:
        DataError: there is none of that name.
    """
    known = list(names)
    if column in known:
        return
    meant = nearest_name(column, known) or next((name for name in _USUAL if name in known), None)
    hint = f"; {remedy.format('<the column of prompts>')}"
    if meant is not None:
        hint = f"; did you mean {meant!r}? Then {remedy.format(repr(meant))}"
    if "messages" in known:
        hint = (
            f"; 'messages' holds conversations: {remedy.format(repr('messages'))} if each ends where the answer "
            "begins, else make a column of the messages before the last answer"
        )
    elif "chosen" in known:
        hint = "; 'chosen' holds prompts with their answers: make a column of what stands before the answer"
    raise DataError(f"{where} has no column {column!r} (it has: {', '.join(map(str, known))}){hint}")
