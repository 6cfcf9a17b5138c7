"""A request's body: read with care, each field taken, forwarded or refused by name."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nonpareil.answers import UnusableAnswer, is_text, parse_json
from nonpareil.serving.choosing import rule_of
from nonpareil.serving.fields import FORWARDED, OWN, READ_HERE, has_effect, is_number, whole
from nonpareil.serving.problems import refused
from nonpareil.serving.records import DrawRequest, UpstreamError
from nonpareil.serving.stopping import Goal, Stopping, rounds_of
from nonpareil.setting_types import nearest

if TYPE_CHECKING:
    from nonpareil.selection.rule import Rule

SEEDS = 2**31
"""Seeds of our own lie below it: some upstreams take no larger ones."""
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Defaults:
    """What stands in for fields that a request leaves out, and what one may ask for."""

    model: str
    best_of: int
    max_best_of: int
    rule: str
    max_tokens: int
    """Of an answer, where a request does not say."""
    seconds: float
    """From a request's arrival to its answer."""
    without: Mapping[bool, str]
    """For chats (True) and completions (False): why they cannot be answered, where that is so."""
    stopping: Stopping = field(default_factory=Stopping)
    chooses: bool = True
    """Whether there is a reward to choose by; one answer is drawn where there is none."""


@dataclass(frozen=True)
class Asked:
    """All that a request asks for."""

    request: DrawRequest
    n: int
    """How many of the answers are returned."""
    rule: "Rule"
    stream: bool
    include_usage: bool
    max_tokens: int
    """Of each answer."""
    goal: Goal | None = None
    """Further rounds are drawn, up to `request.max_draws`, until n answers are good enough; None draws one."""


def read_json(content: bytes) -> dict[str, Any]:
    """The body's fields.

    Raises:
        UpstreamError: 400: no JSON object, one that names a field twice, or numbers that JSON has not.
    """
    try:
        body = parse_json(content)
        json.dumps(body, allow_nan=False)
    except UnusableAnswer as error:
        raise refused(str(error).replace("the answer names", "the body names")) from error
    except (ValueError, RecursionError) as error:
        raise refused(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise refused(f"the body is a {type(body).__name__}; it must be a JSON object")
    return body


def asked_of(body: Mapping[str, Any], chat: bool, defaults: Defaults) -> Asked:
    """What a body asks for.

    Raises:
        UpstreamError: 400 naming the field that is unknown or cannot be; 404: a model that is not served.
    """
    _check_names(body, chat)
    if chat in defaults.without:
        raise refused(defaults.without[chat])
    model = body.get("model")
    if model is not None and model != defaults.model:
        known = f"this server has {defaults.model!r}"
        raise UpstreamError(404, "model_not_found", f"model={model!r} is not served; {known}", param="model")
    n = whole(body, "n", 1)
    best_of = whole(body, "best_of", max(defaults.best_of, n))
    if best_of > defaults.max_best_of:
        field = "n" if body.get("best_of") is None and n > defaults.best_of else "best_of"
        why = "" if defaults.chooses else ": it has no reward to choose among several by"
        raise refused(f"{field}={best_of} is more than this server draws, {defaults.max_best_of}{why}", field)
    if n > best_of:
        raise refused(f"n={n} answers of best_of={best_of} that are drawn; lower n or raise best_of", "n")
    if body.get("echo"):
        raise refused("echo=true would have the reward read the prompt twice; leave it out", "echo")
    forwarded = {k: v for k, v in body.items() if k not in READ_HERE and v is not None}
    rule = _rule(body, defaults, best_of)
    max_draws, goal = rounds_of(body, defaults.stopping, best_of, defaults.max_best_of, str(rule))
    _check_temperature(forwarded, max_draws or best_of)
    forwarded, max_tokens = _limited(forwarded, defaults.max_tokens)
    stream, include_usage = _streaming(body)
    return Asked(
        request=DrawRequest(
            prompt=_messages(body) if chat else _text(body),
            chat=chat,
            best_of=best_of,
            seed=_seed(body),
            forwarded=forwarded,
            deadline=time.monotonic() + defaults.seconds,
            model=defaults.model,
            max_draws=max_draws,
        ),
        n=n,
        rule=rule,
        stream=stream,
        include_usage=include_usage,
        max_tokens=max_tokens,
        goal=goal,
    )


def _check_names(body: Mapping[str, Any], chat: bool) -> None:
    known = FORWARDED[chat] | OWN | {"model", "n", "seed", "stream", "stream_options"}
    known |= {"messages" if chat else "prompt"}
    for name in body:
        if name in known:
            continue
        if name == "extra_body":
            raise refused(
                "extra_body is what clients call further fields of the body; put its content beside model",
                name,
            )
        where = "/v1/chat/completions" if chat else "/v1/completions"
        raise refused(f"unknown field {name!r} of {where}{nearest(name, known, quoted=True)}", name)


def _seed(body: Mapping[str, Any]) -> int:
    value = body.get("seed")
    if value is None:
        return secrets.randbelow(SEEDS)
    if isinstance(value, bool) or not isinstance(value, int) or not -MOST_SEED <= value <= MOST_SEED:
        raise refused(f"seed={value!r} must be a whole number of at most 63 bits", "seed")
    return value


def _rule(body: Mapping[str, Any], defaults: Defaults, best_of: int) -> "Rule":
    value = body.get("rule")
    if not isinstance(value, str | None):
        raise refused(
            f"rule={value!r:.80} must be a text, such as 'best_of_n' or 'soft:temperature=0.5'", "rule"
        )
    return rule_of(defaults.rule if value is None else value, best_of)


def _check_temperature(forwarded: Mapping[str, Any], best_of: int) -> None:
    value = forwarded.get("temperature")
    if value is None:
        return
    if not is_number(value) or value < 0:
        raise refused(f"temperature={value!r} must be a number of at least 0", "temperature")
    if value == 0 and best_of > 1:
        raise refused(
            f"temperature=0 gives best_of={best_of} equal answers, of which none is the best; raise it, or give "
            "best_of=1 (and max_draws=1)",
            "temperature",
        )


def _limited(forwarded: dict[str, Any], default: int) -> tuple[dict[str, Any], int]:
    """The fields with a limit on an answer's tokens, and that limit."""
    given = [
        name for name in ("max_completion_tokens", "max_tokens") if has_effect(name, forwarded.get(name))
    ]
    if not given:
        return {**forwarded, "max_tokens": default}, default
    limits = {whole(forwarded, name, default) for name in given}
    if len(limits) > 1:
        raise refused("max_completion_tokens and max_tokens are one limit; give one of them", "max_tokens")
    return forwarded, limits.pop()


def _streaming(body: Mapping[str, Any]) -> tuple[bool, bool]:
    stream, options = body.get("stream"), body.get("stream_options")
    if not isinstance(stream, bool | None):
        raise refused(f"stream={stream!r} must be true or false", "stream")
    if options is None:
        return bool(stream), False
    if not stream or not isinstance(options, dict):
        raise refused(
            f"stream_options={options!r:.200} is an object, and read with stream=true", "stream_options"
        )
    for name, value in options.items():
        if name != "include_usage" or not isinstance(value, bool):
            raise refused(
                f"stream_options has {name!r}={value!r:.80}; include_usage is read, true or false",
                "stream_options",
            )
    return True, options.get("include_usage", False)


def _text(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt:
        what = "several prompts" if isinstance(prompt[0], str | list) else "token ids"
        raise refused(
            f"prompt holds {what}; give one text a request: answers are chosen by a reward", "prompt"
        )
    if not is_text(prompt) or not prompt.strip():
        raise refused(f"prompt={prompt!r:.200} must be a text that is not empty", "prompt")
    return prompt


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refused(f"messages={messages!r:.200} must be a list of messages that is not empty", "messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not is_text(message.get("role")):
            raise refused(f"messages[{place}]={message!r:.200} must be an object with a role", "messages")
    return messages
