"""One turn of a conversation: who speaks, what is said, and a tool's calls and answers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""`role` and `content`, texts; beside `tool_calls` the content may be None. Further keys: `MESSAGE_KEYS`."""
MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id")
"""As transformers' chat templates read them; `tool_calls` is a list of {type, function: {name, arguments}}."""


def content_of(message: Mapping[str, Any]) -> str:
    """What a message says itself; "" beside calls alone."""
    return message.get("content") or ""


def has_further(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any message has more than a role and a text."""
    return any(
        message.get("content") is None or any(message.get(key) for key in MESSAGE_KEYS)
        for message in messages
    )


def turn_text(message: Mapping[str, Any]) -> str:
    """A whole turn for a reader: its role, who is named, its words, and its calls as JSON."""
    named = f" ({message['name']})" if message.get("name") else ""
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return f"{message['role']}{named}: " + "\n".join(filter(None, [content_of(message), *calls]))
