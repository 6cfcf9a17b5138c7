"""Rows of prompts, checked one by one: what a prompt is, and what may ride along."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from nonpareil.errors import DataError
from nonpareil.records import MESSAGE_KEYS, Message, PromptText, content_of, has_further
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
    """The prompt itself, its messages with what templates read of them.

    Raises:
        DataError: empty, neither a string nor a list of messages, one that ends with a call, or with half a
            character; `where` says which.
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
    if not any(content_of(message).strip() for message in messages):
        raise DataError(f"{where}: the prompt is empty; remove the row")
    if messages[-1]["role"] == "assistant" and has_further(messages[-1:]):
        raise DataError(
            f"{where}: the prompt ends with the assistant's tool_calls or name, and a completion goes on from "
            "words alone; end it with the tool's answer, or before the call"
        )
    if messages[-1]["role"] == "assistant" and not content_of(messages[-1]).strip():
        raise DataError(
            f"{where}: the prompt ends with an empty message of the assistant, from which nothing goes on; take "
            "that message out"
        )
    return messages


def _checked_message(message: Any, where: str) -> Message:
    """A message as templates are given it: what `datasets` fills with None, since others have it, is taken off."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f"{where}: {message!r:.80} is no message of {{role, content}} with two strings")
    calls, content = _checked_calls(message.get("tool_calls"), where), message.get("content")
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(
            f"{where}: {message!r:.80} is no message of {{role, content}} with two strings (content may be null "
            "beside tool_calls alone)"
        )
    further = sorted(
        key
        for key, value in message.items()
        if key not in ("role", "content", *MESSAGE_KEYS) and value is not None
    )
    if further:
        raise DataError(
            f"{where}: a message has {further[0]!r}, which is not taken beside role, content, "
            f"{', '.join(MESSAGE_KEYS)}; remove it"
        )
    made: Message = {"role": message["role"], "content": content}
    for key in ("name", "tool_call_id"):
        if (value := message.get(key)) is not None:
            if not isinstance(value, str):
                raise DataError(f"{where}: a message's {key}={value!r:.60} must be text")
            made[key] = value
    return {**made, "tool_calls": calls} if calls else made


def _checked_calls(given: Any, where: str) -> list[dict[str, Any]]:
    """A message's `tool_calls`; Arrow gives each call the arguments of all others, nulls, which are taken off."""
    if given is None:
        return []
    wanted = (
        f"{where}: tool_calls={given!r:.60} must be a list of {{type, function: {{name, arguments}}}}, as chat "
        "templates read them"
    )
    if not isinstance(given, list) or not all(isinstance(call, Mapping) and call for call in given):
        raise DataError(wanted)
    try:
        calls = json.loads(json.dumps(without_nulls(given), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"{wanted}: {error}") from error
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(wanted)
    return calls


def without_nulls(value: Any) -> Any:
    """Nested mappings without their nulls."""
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(one) for one in value]
    return value


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
