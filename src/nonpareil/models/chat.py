"""What went wrong in a chat template, which is a program that comes with a tokenizer."""

from collections.abc import Mapping, Sequence
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
