"""What is told to a client: errors as the protocol has them, under the status that they are."""

import re
from typing import Any

from nonpareil.serving.records import UpstreamError
from nonpareil.terminal import printable_lines

MOST_WORDS = 2000
"""Characters of a message."""


def refused(message: str, field: str | None = None, *, status: int = 400) -> UpstreamError:
    """A request that cannot be answered as it is."""
    return UpstreamError(status, "invalid_request_error", message, param=field)


def told(error: Exception) -> str:
    """A message about rows of prompts and options, in the words of a request."""
    words = re.sub(r"^row 0 (\(the first is 0\): |is a conversation, but )", "", str(error))
    return words.replace("max_completion_length", "max_tokens")


def too_many(message: str, retry_after: float) -> UpstreamError:
    """A request that may come again, after so many seconds."""
    return UpstreamError(429, "rate_limit_exceeded", message, retry_after=retry_after)


def late(seconds: float) -> UpstreamError:
    """A request whose time is over."""
    return UpstreamError(504, "timeout", f"no answer within {seconds:g} seconds")


def body_of(error: UpstreamError) -> dict[str, Any]:
    """An error as OpenAI writes it; `code` is the status."""
    message = printable_lines(error.message)[:MOST_WORDS]
    return {"error": {"message": message, "type": error.kind, "param": error.param, "code": error.status}}


def headers_of(error: UpstreamError) -> dict[str, str]:
    """Those that belong to it: whole seconds of `Retry-After`, one at least."""
    headers = (
        {} if error.retry_after is None else {"Retry-After": str(max(1, round(error.retry_after + 0.5)))}
    )
    return headers | ({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})
