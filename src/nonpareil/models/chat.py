"""A chat template, which is a program that comes with a tokenizer: what it reads, and what went wrong in it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any

import jinja2

from nonpareil.errors import ConfigError, DataError
from nonpareil.files import jsonable
from nonpareil.records import Message, content_of, has_further
from nonpareil.terminal import printable, reason_of, tell

SET_HERE = (
    *("conversation", "messages", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
    *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"),
)
"""Arguments of `apply_chat_template` that are not a user's to give."""


def template_source(tokenizer: Any) -> str:
    """The chat template as text; of several all, and empty where there is none."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def mentions(source: str, name: str) -> bool:
    """Whether a template's source has the name as a word."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source) is not None


def check_template_arguments(kwargs: Mapping[str, Any], tokenizer: Any, setting: str, whose: str) -> None:
    """Refuse a chat template's further arguments that it never mentions, or that no manifest could hold.

    `setting` gave them; `whose` template it is, in words.

    Raises:
        ConfigError: naming the argument.
    """
    try:
        jsonable(dict(kwargs))
    except TypeError as error:
        raise ConfigError(f"{setting}: {error}; a manifest must be able to hold the values") from error
    source = template_source(tokenizer)
    for name in kwargs:
        if name in SET_HERE:
            raise ConfigError(f"{setting}: {name!r} is set here and not yours to give; remove it")
        if not mentions(source, name):
            raise ConfigError(
                f"{setting}: {whose} never mentions {name!r}, so nothing would read it; remove it, or correct the "
                "name"
            )


def template_failure(template: str, messages: Sequence[Mapping[str, Any]], error: Exception) -> str:
    """One line that says whether the template refuses a conversation, fails on it, or is none."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"{template} is no Jinja template, in its line {error.lineno}: {reason_of(error)}"
    roles = [message["role"] for message in messages]
    refuses = isinstance(error, jinja2.TemplateError | ValueError)
    reason = printable(" ".join(str(error).split())) if refuses else reason_of(error)
    return f"{template} {'refuses' if refuses else 'fails on'} roles {roles}: {reason}{_hint(messages)}"


def _hint(messages: Sequence[Mapping[str, Any]]) -> str:
    """What of messages with tool calls templates take in one form alone, each in its own."""
    if any(message.get("content") is None for message in messages):
        return "; a message's content is null, and it may want ''"
    calls = [call.get("function", call) for message in messages for call in message.get("tool_calls") or ()]
    if not calls:
        return ""
    text = any(isinstance(call.get("arguments"), str) for call in calls)
    return f"; it may want arguments of tool_calls as {'an object' if text else 'JSON text'}"


def check_messages_written(
    messages: Sequence[Message], render: Callable[[Sequence[Message]], str], whose: str
) -> None:
    """Refuse a conversation whose tool calls a template does not write, or whose null content it writes as a word.

    Tells, once, of names and ids of calls that it leaves out.

    Args:
        messages: which it renders.
        render: the template; what it raises is told where the conversation is rendered for good.
        whose: template it is, in words, with the place of the conversation.

    Raises:
        DataError: naming what is lost.
    """
    if not has_further(messages):
        return
    roles = [message["role"] for message in messages]
    words = [{**message, "content": content_of(message)} for message in messages]

    def rendered(told: Sequence[Message]) -> str | None:
        try:
            return render(told)
        except Exception:  # noqa: BLE001  (a template is a program of others, and raises what it likes)
            return None

    def without(*keys: str) -> str | None:
        return rendered([{k: v for k, v in message.items() if k not in keys} for message in words])

    written, plain = rendered(messages), without()
    if written is not None and plain is not None and written.count("None") > plain.count("None"):
        raise DataError(
            f"{whose} writes a message's null content as the word None (roles {roles}); give it as ''"
        )
    bare = without("tool_calls") if any(message.get("tool_calls") for message in messages) else None
    if bare is not None and bare in (written, plain):
        raise DataError(
            f"{whose} writes none of the tool_calls of a conversation of roles {roles}; give a model whose "
            "template reads them, or write the calls into the content"
        )
    labels = [key for key in ("name", "tool_call_id") if any(key in message for message in messages)]
    lost = [key for key in labels if plain is not None and without(key) == plain]
    if lost:
        _tell_lost(whose.rpartition(": ")[2], " and ".join(lost))


@cache
def _tell_lost(whose: str, keys: str) -> None:
    tell(f"{whose} does not write the {keys} of messages; what reads by it does not know them")


@contextmanager
def held_clock(now: datetime) -> Iterator[None]:
    """Chat templates take `now` for now meanwhile, so that all prompts of a run have one date.

    Templates call a function of transformers that reads the clock; from 5.24 on none that is given in its place
    reaches them.
    """
    from transformers.utils import chat_template_utils

    class Held(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now

    module: Any = chat_template_utils
    before, module.datetime = module.datetime, Held
    try:
        yield
    finally:
        module.datetime = before
