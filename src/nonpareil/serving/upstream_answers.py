"""What an upstream answers, checked: the choices in order, each as it came, and every token counted."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nonpareil.answers import shown
from nonpareil.engines.choices import MOST_IDS, is_logprob, is_token_id
from nonpareil.serving.records import Answer, UpstreamError

Json = Mapping[str, Any]


def unusable(reason: str) -> UpstreamError:
    """An answer that no other try would mend."""
    return UpstreamError(502, "upstream_answer", f"the upstream's answer cannot be used: {reason}")


def choices_of(answer: Any) -> list[Json]:
    """The choices, in the order of their index.

    Raises:
        UpstreamError: no list of choices, or two of one number.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise unusable("it has no list of choices")
    given = [choice.get("index") for choice in choices]
    if all(index is None for index in given):  # a server that does not number them
        return choices
    if any(not isinstance(index, int) or isinstance(index, bool) for index in given) or len({*given}) < len(
        given
    ):
        raise unusable(f"its choices are numbered {shown(given):.80}; different ones are numbered from 0")
    return sorted(choices, key=lambda choice: choice["index"])


def read_choice(
    choice: Json, *, chat: bool, asked_logprobs: bool, ids_known: bool, own_logprobs: bool
) -> Answer:
    """One choice, unchanged.

    Args:
        choice: as it came.
        chat: whether it holds a message.
        asked_logprobs: whether the client asked for log-probs, and so is given them.
        ids_known: whether its token ids, if there, are those of its text (no stop string cut it).
        own_logprobs: whether its log-probs are the sampling policy's.

    Raises:
        UpstreamError: no text, no finish reason, or what no JSON can hold.
    """
    try:
        json.dumps(choice, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # half a character, NaN
        raise unusable(f"a choice cannot be passed on: {error!s:.80}") from error
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason:
        raise unusable(f"a choice has finish_reason={shown(reason):.40}; it must say how it ended")
    message = choice.get("message") if chat else None
    if chat and not isinstance(message, dict):
        raise unusable("a choice has no message")
    text = choice.get("text") if message is None else message.get("content")
    if message is not None and text is None:
        text = ""  # how an empty message, or one of tool calls alone, is written
    if not isinstance(text, str):
        raise unusable(f"a choice has no text, but {shown(text):.40}")
    whole = message is None or not any(
        message.get(name) for name in ("reasoning_content", "reasoning", "tool_calls", "function_call")
    )
    ids = _ids(choice, "token_ids") if ids_known and whole else None
    values = _token_logprobs(choice.get("logprobs")) if ids is not None and own_logprobs else None
    return Answer(
        text=text,
        finish_reason=reason,
        message=message,
        token_ids=ids,
        logprobs=choice.get("logprobs") if asked_logprobs else None,
        token_logprobs=values if values is not None and ids is not None and len(values) == len(ids) else None,
    )


def prompt_ids_of(answer: Json, choices: Sequence[Json]) -> list[int] | None:
    """What the upstream made of the prompt, where it says so: vLLM in each choice, or once in a chat's answer."""
    return _ids(answer, "prompt_token_ids") or (_ids(choices[0], "prompt_token_ids") if choices else None)


def usage_of(answer: Json, answers: Sequence[Answer]) -> tuple[int, int]:
    """Tokens of the prompt, once, and of all choices.

    Raises:
        UpstreamError: they are not told, so that nobody could say what was spent.
    """
    usage = answer.get("usage")
    found = usage if isinstance(usage, dict) else {}
    prompt, drawn = found.get("prompt_tokens"), found.get("completion_tokens")
    if drawn is None and all(one.token_ids is not None for one in answers):
        drawn = sum(len(one.token_ids or ()) for one in answers)
    if drawn is None or prompt is None or not (_is_count(drawn) and _is_count(prompt)):
        raise unusable(f"it does not say how many tokens were read and drawn, but usage={shown(usage):.80}")
    return prompt, drawn


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(holder: Json, name: str) -> list[int] | None:
    given = holder.get(name)
    if not isinstance(given, list) or not given:
        return None
    return given if all(is_token_id(one, MOST_IDS) for one in given) else None


def _token_logprobs(given: Any) -> list[float] | None:
    """Of completions (`token_logprobs`) or of a chat (`content`); None where any is missing or no log-prob."""
    if not isinstance(given, dict):
        return None
    values = given.get("token_logprobs")
    if values is None:
        rows = given.get("content")
        values = [row.get("logprob") for row in rows] if isinstance(rows, list) else None
    if not isinstance(values, list) or not all(map(is_logprob, values)):
        return None
    return [float(value) for value in values]
