"""Which served requests can be kept as groups, and which of them belong together: drawn alike, from one policy."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nonpareil.errors import DataError
from nonpareil.records import PromptText
from nonpareil.rollouts.checked_rows import checked_prompt
from nonpareil.rollouts.tools import COLUMN as TOOLS
from nonpareil.rollouts.tools import Tools, tools_of
from nonpareil.serving.records import Drawn, DrawRequest

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop": ()}
"""What a manifest says of sampling beside the limit; in a request that leaves one out it has this value."""
LIMITS = ("max_tokens", "max_completion_tokens")
TEMPLATE = "chat_template_kwargs"
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tool_choice": ("auto",),
    "echo": (False,),
    "suffix": ("",),
}
"""Values by which a field changes nothing of what is drawn."""
UNREAD = (
    *("logprobs", "top_logprobs", "user", "metadata", "store", "service_tier", "priority", "request_id"),
    *("safety_identifier", "prompt_cache_key", "parallel_tool_calls", "return_token_ids", "n"),
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

    @property
    def name(self) -> str:
        """Of its folder: `chat-n8-t1-max256`, and a few digits of a hash where anything else is asked for, too."""
        plain = f"{'chat' if self.chat else 'text'}-n{self.best_of}"
        plain += f"-t{self.sampling['temperature']:g}-max{self.sampling['max_completion_length']}"
        others = {
            k: v
            for k, v in self.sampling.items()
            if k in SAMPLING and k != "temperature" and v != SAMPLING[k]
        }
        if not others and not self.template_kwargs and not self.tools:
            return plain
        further = json.dumps([others, self.template_kwargs, self.tools], sort_keys=True)
        return f"{plain}-{hashlib.sha256(further.encode()).hexdigest()[:6]}"

    @property
    def prompts(self) -> dict[str, Any]:
        """What its manifest says of prompts: how they were rendered, since nobody knows which will come."""
        if not self.chat:
            return {}
        return {"rendering": {TEMPLATE: self.template_kwargs, **({"tools": True} if self.tools else {})}}


def kind_of(request: DrawRequest, drawn: Drawn) -> tuple[Kind, PromptText, Tools | None]:
    """The kind of a request that was drawn for, its prompt as it is kept, and the tools that the model was shown.

    Raises:
        NotStored: what was drawn is no plain draw from the policy, or the record has no place for it.
    """
    if len(drawn.answers) != request.best_of:
        raise NotStored("draws stopped early, so that their number follows from the rewards")
    if request.best_of < 2:
        raise NotStored("best_of is 1, and a group compares draws")
    ends = {answer.finish_reason for answer in drawn.answers} - {"stop", "length"}
    if ends:
        raise NotStored(f"an answer ended with {min(ends)!r}, not with stop or length")
    if any(answer.message is not None and answer.message.get("tool_calls") for answer in drawn.answers):
        raise NotStored("an answer calls a tool, which is no text")
    given = {name: value for name, value in request.forwarded.items() if value is not None}
    sampling = _sampling(given, drawn)
    for name, value in given.items():
        if name in SAMPLING or name in LIMITS or name in UNREAD or name in (TOOLS, TEMPLATE):
            continue
        if value not in NEUTRAL.get(name, ()):
            raise NotStored(f"{name} was asked for, which draws from another distribution than the policy's")
    tools = _tools(given)
    kind = Kind(request.chat, request.best_of, sampling, dict(given.get(TEMPLATE) or {}), tools is not None)
    return kind, _prompt(request), tools


def _sampling(given: Mapping[str, Any], drawn: Drawn) -> dict[str, Any]:
    limits = [given[name] for name in LIMITS if name in given]
    limit = min(limits) if limits else drawn.info.get("max_tokens")
    if limit is None:
        raise NotStored("max_tokens was not given, so where answers were cut is unknown")
    sampling: dict[str, Any] = {"max_completion_length": limit}
    for name, usual in SAMPLING.items():
        sampling[name] = type(usual)(given[name]) if name in given and name != "stop" else usual
    stop = given.get("stop") or ()
    sampling["stop"] = [stop] if isinstance(stop, str) else list(stop)
    if sampling["temperature"] <= 0:
        raise NotStored("temperature is 0, so that all draws are one")
    if sampling["top_k"] < 0:  # another way to say the whole vocabulary
        sampling["top_k"] = 0
    for name, usual in (("repetition_penalty", 1.0), ("stop", [])):  # as `SamplingParams.described` has them
        if sampling[name] == usual:
            del sampling[name]
    return sampling


def _tools(given: Mapping[str, Any]) -> Tools | None:
    try:
        return tools_of(given, "the request")
    except DataError as error:
        raise NotStored("its tools are no JSON schemas") from error


def _prompt(request: DrawRequest) -> PromptText:
    """As a group keeps it."""
    try:
        prompt = checked_prompt(request.prompt, "the request")
    except DataError as error:
        raise NotStored(
            "a message has more than role and text (parts, names, tool calls), or there are no words"
        ) from error
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise NotStored("the assistant spoke last, and servers differ in whether they continue it")
    return prompt
