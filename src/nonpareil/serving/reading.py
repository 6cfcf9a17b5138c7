"""What a reward reads of a request and of an answer: texts, and tool calls written as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from nonpareil.records import Message, PromptText
from nonpareil.serving.problems import refused
from nonpareil.serving.records import Answer


def readable(prompt: str | list[dict[str, Any]]) -> PromptText:
    """A prompt as rewards take it: a text, or messages of role and text.

    Raises:
        UpstreamError: 400: a message holds something else than text.
    """
    if isinstance(prompt, str):
        return prompt
    return [_message(message, f"messages[{place}]") for place, message in enumerate(prompt)]


def answer_text(answer: Answer) -> str:
    """An answer as rewards read it: its text, and each tool call as a line of JSON behind it."""
    return _with_calls(answer.text, _calls(answer.message or {}))


def _message(message: Mapping[str, Any], where: str) -> Message:
    text = _with_calls(text_of_content(message.get("content"), where), _calls(message))
    return {"role": message["role"], "content": text}


def text_of_content(content: Any, where: str) -> str:
    """A message's content as one text; parts of type text are put one behind another.

    Raises:
        UpstreamError: 400: another content.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise refused(
                f"{where} holds {kind!r:.80}; whatever draws or scores in this process reads text alone",
                "messages",
            )
        texts.append(part["text"])
    return "".join(texts)


def _calls(message: Mapping[str, Any]) -> list[Any]:
    """The tool calls of a message, or its function call as they were called once."""
    calls = message.get("tool_calls")
    if not calls and message.get("function_call"):
        calls = [message["function_call"]]
    return calls if isinstance(calls, list) else []


def _with_calls(text: str, calls: list[Any]) -> str:
    if not calls:
        return text
    written = [
        json.dumps(call.get("function", call) if isinstance(call, dict) else call, ensure_ascii=False)
        for call in calls
    ]
    return "\n".join([*([text] if text else []), *written])
