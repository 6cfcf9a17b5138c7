"""A chat template, which is a program that comes with a tokenizer: what it reads, and what went wrong in it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2

from nonpareil.errors import ConfigError
from nonpareil.files import jsonable
from nonpareil.terminal import printable, reason_of

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
    return f"{template} {'refuses' if refuses else 'fails on'} roles {roles}: {reason}"


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
