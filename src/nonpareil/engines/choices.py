"""What an OpenAI-compatible server answers, checked: as many choices as can be used, and nothing made up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from nonpareil.errors import RemoteError
from nonpareil.records import FinishReason

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """One completion as the server gave it; what it did not give is empty."""

    text: str
    finish_reason: FinishReason
    token_ids: list[int]
    """Empty unless the ids of the prompt are known too: alone they are of no use."""
    logprobs: list[float]
    """One a token id, in nats; empty without ids."""
    prompt_token_ids: list[int]


def read_choices(
    answer: Any, asked: int, max_tokens: int, prompt_ids: list[int], mask: Callable[[str], str] = str
) -> list[Choice]:
    """The choices of an answer of either endpoint, in the order of their index; from one to `asked` of them.

    Args:
        answer: the parsed JSON.
        asked: the n of the request.
        max_tokens: of one completion.
        prompt_ids: as sent; empty where text was sent.
        mask: takes the key out of what is quoted of the answer.

    Raises:
        RemoteError: no choices or more than asked; no text; a finish reason other than stop and length; more
            tokens than were allowed; or other prompt ids than those sent.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise RemoteError(f"the answer has no list of choices: {mask(repr(answer)):.200}")
    if not 1 <= len(choices) <= asked:
        raise RemoteError(f"the answer has {len(choices)} choices, and n={asked} were asked for")
    _check_usage(answer.get("usage"), asked, max_tokens)
    ordered = sorted(choices, key=lambda choice: _whole(choice.get("index")) or 0)
    return [_choice(one, answer, max_tokens, prompt_ids, mask) for one in ordered]


def _choice(
    choice: Json, answer: Json, max_tokens: int, sent: list[int], mask: Callable[[str], str]
) -> Choice:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise RemoteError(
            f"finish_reason={reason!r}: a completion ends with stop or length; anything else is no draw of the "
            "policy. Change what is asked or how the model is served"
        )
    text, whole = _text(choice, mask)
    # vLLM has the prompt's ids in each choice of a completion, and once in a chat's answer.
    read = _ids(choice.get("prompt_token_ids")) or _ids(answer.get("prompt_token_ids"))
    if sent and read and read != sent:
        raise RemoteError(f"the server read other prompt ids than were sent: {len(read)}, not {len(sent)}")
    prompt_ids = sent or read
    ids = _ids(choice.get("token_ids")) if prompt_ids and whole else []
    if len(ids) > max_tokens:
        raise RemoteError(f"a completion has {len(ids)} tokens, over max_completion_length={max_tokens}")
    logprobs = _logprobs(choice.get("logprobs"))
    return Choice(
        text, cast(FinishReason, reason), ids, logprobs if len(logprobs) == len(ids) else [], prompt_ids
    )


def _text(choice: Json, mask: Callable[[str], str]) -> tuple[str, bool]:
    """The completion, and whether it is all that was sampled: a server may keep the reasoning apart."""
    if "message" not in choice:
        text, whole = choice.get("text"), True
    else:
        message = choice["message"] if isinstance(choice["message"], dict) else {"content": 0}
        if message.get("tool_calls"):
            raise RemoteError(
                "the model called a tool, which is no completion; serve it without a tool parser"
            )
        whole = not (message.get("reasoning_content") or message.get("reasoning"))
        text = message.get("content")
        text = "" if text is None else text  # how an empty message is written
    if not isinstance(text, str):
        raise RemoteError(f"a choice has no text: {mask(repr(choice)):.200}")
    return text, whole


def _check_usage(usage: Any, asked: int, max_tokens: int) -> None:
    spent = _whole(usage.get("completion_tokens")) if isinstance(usage, dict) else None
    if spent is not None and spent > asked * max_tokens:
        raise RemoteError(
            f"the server drew {spent} tokens for n={asked} and max_completion_length={max_tokens}: it does not "
            "keep to the limit"
        )


def _logprobs(given: Any) -> list[float]:
    """Of completions (`token_logprobs`) or of a chat (`content`); empty where any is missing or none."""
    if not isinstance(given, dict):
        return []
    values = given.get("token_logprobs")
    if values is None:
        content = given.get("content")
        rows = content if isinstance(content, list) else []
        values = [row.get("logprob") if isinstance(row, dict) else None for row in rows]
    known = isinstance(values, list) and all(
        # Of a probability: above 0 by rounding at most.
        isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value <= 1e-4
        for value in values
    )
    return [float(value) for value in values] if known else []


def _ids(given: Any) -> list[int]:
    whole = isinstance(given, list) and all(_whole(one) is not None for one in given)
    return list(given) if whole else []


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
