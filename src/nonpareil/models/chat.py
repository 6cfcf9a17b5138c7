"""What went wrong in a chat template, which is a program that comes with a tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2

from nonpareil.terminal import printable, reason_of


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
