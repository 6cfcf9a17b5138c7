"""Which served requests can be kept as groups, and which of them belong together: drawn alike, from one policy."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nonpareil.answers import is_text
from nonpareil.errors import DataError
from nonpareil.files import jsonable
from nonpareil.records import MESSAGE_KEYS, PromptText, SamplingParams, has_further
from nonpareil.rollouts.checked_rows import checked_prompt
from nonpareil.rollouts.columns import FURTHER
from nonpareil.rollouts.tools import COLUMN as TOOLS
from nonpareil.rollouts.tools import Tools, tools_of
from nonpareil.serving.fields import has_effect
from nonpareil.serving.records import Drawn, DrawRequest

_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SAMPLING = (*_NUMBERS, "stop")
"""Fields that a manifest has under `sampling`, beside the limit."""
_USUAL = SamplingParams().described()
LIMITS = ("max_tokens", "max_completion_tokens")
TEMPLATE = "chat_template_kwargs"
UNREAD = (
    *("logprobs", "top_logprobs", "user", "metadata", "store", "service_tier", "priority", "request_id"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_salt", "cache_prompt"),
    *("id_slot", "include_reasoning", "separate_reasoning", "reasoning_format"),
)
"""Fields that change how an answer is written or told, and not which."""


class NotStored(Exception):
    """A request that no group can hold truthfully, and why."""


@dataclass(frozen=True)
class Kind:
    """What the groups of one folder have in common, beside model and reward."""

    chat: bool
    best_of: int
    sampling: dict[str, Any]
    """As manifests keep it, without the seed."""
    template_kwargs: dict[str, Any]
    tools: bool
    further: bool = False
    """Whether messages have names or calls, which take a column more."""

    @property
    def name(self) -> str:
        """Of its folder: `chat-n8-t1-max256`, and a few digits of a hash where anything else is asked for, too."""
        plain = f"{'chat' if self.chat else 'text'}-n{self.best_of}"
        plain += f"-t{self.sampling['temperature']:g}-max{self.sampling['max_completion_length']}"
        named = ("temperature", "max_completion_length")
        others = {k: v for k, v in self.sampling.items() if k not in named and v != _USUAL.get(k)}
        if not others and not self.template_kwargs and not self.tools and not self.further:
            return plain
        asked = [others, self.template_kwargs, self.tools, *([FURTHER] if self.further else [])]
        further = json.dumps(asked, sort_keys=True)
        return f"{plain}-{hashlib.sha256(further.encode()).hexdigest()[:6]}"

    @property
    def prompts(self) -> dict[str, Any]:
        """What its manifest says of prompts: how they were rendered, since nobody knows which will come."""
        if not self.chat:
            return {}
        rendering = {TEMPLATE: self.template_kwargs, **({"tools": True} if self.tools else {})}
        return {"rendering": rendering, **({FURTHER: True} if self.further else {})}


def kind_of(request: DrawRequest, drawn: Drawn) -> tuple[Kind, PromptText, Tools | None]:
    """The kind of a request that was drawn for, its prompt as it is kept, and the tools that the model was shown.

    Raises:
        NotStored: what was drawn is no plain draw from the policy, or the record has no place for it.
    """
    # Of draws in rounds the first round comes here: whatever came of it, so that it is no choice of the good ones.
    if len(drawn.answers) != request.best_of:
        raise NotStored("it was not drawn as often as it was asked for")
    if request.best_of < 2:
        raise NotStored("best_of is 1, and a group compares draws")
    ends = {answer.finish_reason for answer in drawn.answers} - {"stop", "length"}
    if ends:
        raise NotStored(f"an answer ended with {min(ends)!r}, not with stop or length")
    if any(answer.message is not None and answer.message.get("tool_calls") for answer in drawn.answers):
        raise NotStored("an answer calls a tool, which is no text")
    given = given_fields(request)
    sampling = sampling_asked(given, drawn.info)
    tools = _tools(given)
    kwargs = drawn.info.get(TEMPLATE, given.get(TEMPLATE)) or {}
    prompt = _prompt(request)
    further = not isinstance(prompt, str) and has_further(prompt)
    kind = Kind(request.chat, request.best_of, sampling, dict(kwargs), tools is not None, further)
    return kind, prompt, tools


def given_fields(request: DrawRequest) -> dict[str, Any]:
    """What the client said of the drawing.

    Raises:
        NotStored: it draws from another distribution than the policy's.
    """
    given = {name: value for name, value in request.forwarded.items() if value is not None}
    _check_fields(given)
    return given


def _check_fields(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in SAMPLING or name in LIMITS or name in UNREAD or name in (TOOLS, TEMPLATE):
            continue
        if name == "tool_choice" and given.get(TOOLS):
            if value != "auto":
                raise NotStored("tool_choice was asked for, which tells the model more than its prompt")
        elif has_effect(name, value):
            raise NotStored(f"{name} was asked for, which draws from another distribution than the policy's")


def sampling_asked(given: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """As manifests keep it; an engine of ours says it (`Drawn.info`), of a server it is what was asked for.

    Raises:
        NotStored: it is not known, or draws nothing but one answer.
    """
    sampling = info.get("sampling")
    if not isinstance(sampling, SamplingParams):
        limits = [given[name] for name in LIMITS if name in given]
        stop = given.get("stop") or []
        numbers: dict[str, Any] = {name: given[name] for name in _NUMBERS if name in given}
        if not all(isinstance(value, int | float) for value in [*numbers.values(), *limits]):
            raise NotStored("its sampling is not all numbers")
        if not isinstance(stop, str) and not (isinstance(stop, list) and all(map(is_text, stop))):
            raise NotStored("its stop is no text and no list of texts")
        numbers |= {name: float(value) for name, value in numbers.items() if name != "top_k"}
        sampling = SamplingParams(
            max_completion_length=min(limits) if limits else info.get("max_tokens") or 0,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            **numbers,
        )
    if sampling.max_completion_length < 1:
        raise NotStored("max_tokens was not given, so where answers were cut is unknown")
    if sampling.temperature <= 0:
        raise NotStored("temperature is 0, so that all draws are one")
    if sampling.top_k < 0:  # another way to say the whole vocabulary
        sampling = replace(sampling, top_k=0)
    return {name: value for name, value in jsonable(sampling.described()).items() if name != "seed"}


def _tools(given: Mapping[str, Any]) -> Tools | None:
    try:
        return tools_of(given, "the request")
    except DataError as error:
        raise NotStored("its tools are no JSON schemas") from error


def _prompt(request: DrawRequest) -> PromptText:
    """As a group keeps it: names and calls of messages as they came."""
    try:
        prompt = checked_prompt(request.prompt, "the request")
    except DataError as error:
        keys = ", ".join(MESSAGE_KEYS)
        raise NotStored(
            f"a message has what no group holds (parts, other keys than role, content, {keys}), or there are no "
            "words"
        ) from error
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise NotStored("the assistant spoke last, and servers differ in whether they continue it")
    return prompt
