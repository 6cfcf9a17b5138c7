"""What passes between the server's parts: a client's request, what was drawn for it, how it was scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class DrawRequest:
    """One client's request, validated."""

    prompt: str | list[dict[str, Any]]
    """A text (`/v1/completions`), or the messages as the client gave them (`/v1/chat/completions`)."""
    chat: bool
    best_of: int
    """How many answers are drawn."""
    seed: int
    """The client's, or one that the server drew; it decides draws, ties and choices."""
    forwarded: Mapping[str, Any]
    """What else of the body concerns drawing, as the client gave it: temperature, stop, tools, response_format,
    logprobs, max_tokens, ... Never `n`, `best_of`, `seed`, `model`, `stream` or `stream_options`."""
    deadline: float
    """Of `time.monotonic()`: after it nobody waits for an answer."""
    model: str = ""
    """The upstream's name of the model."""
    max_draws: int = 0
    """Most answers, where they are drawn in rounds of `best_of` until one is good enough; else 0."""
    first: int = 0
    """Answers of earlier rounds. Those of this one are others, though the seed is the same."""


@dataclass(frozen=True)
class Answer:
    """One drawn answer, as the upstream gave it."""

    text: str
    """What a reward reads: a completion's text, or a message's content ('' where it has none)."""
    finish_reason: str
    """The protocol's, unchanged: stop, length, tool_calls, content_filter."""
    message: Mapping[str, Any] | None = None
    """Of a chat: the upstream's message, tool calls included, unchanged."""
    token_ids: list[int] | None = None
    """The sampled ids, the end token included when drawn; None where the upstream does not tell."""
    logprobs: Any | None = None
    """As the protocol returns them, where the client asked."""
    token_logprobs: list[float] | None = None
    """Of each sampled token under the sampling policy, nats; None where they are not known to be that."""


@dataclass(frozen=True)
class Drawn:
    """What an upstream drew for one request: `best_of` answers, all tokens counted."""

    answers: list[Answer]
    prompt_tokens: int
    """Of the prompt, once."""
    completion_tokens: int
    """Of all answers."""
    model: str
    """As the upstream calls it."""
    prompt_token_ids: list[int] | None = None
    upstream_requests: int = 1
    """Requests that it took, retries included."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What else the upstream says of this drawing, for the stored group: a fingerprint, template arguments."""


@dataclass(frozen=True)
class Scored:
    """How the answers of one request were scored."""

    by_name: dict[str, list[float | None]]
    """Each reward's own, one per answer; None where it failed."""
    rewards: list[float | None]
    """The weighted sum that the choice is made by."""
    failures: list[str | None]
    """Why one is None."""
    failures_by_name: dict[str, list[str | None]] = field(default_factory=dict)


class UpstreamError(Exception):
    """An upstream that did not give what was asked; said to the client as what it is."""

    def __init__(
        self, status: int, kind: str, message: str, retry_after: float | None = None, param: str | None = None
    ) -> None:
        """`status`: HTTP's, for our client. `kind`: OpenAI's `type` of an error, such as `upstream_timeout`.

        `param` names the field of a body that the upstream refused. `retry_after`: in seconds.
        """
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.retry_after, self.param = retry_after, param


class Upstream(Protocol):
    """What answers are drawn from. Cancelling the task that waits in `draw` ends the work for it."""

    async def draw(self, request: DrawRequest) -> Drawn:
        """As many answers as `request.best_of`, by its deadline.

        Raises:
            UpstreamError: a field that it cannot honour (400), no answer in time (504), or a failure (502, 503).
        """
        ...

    async def models(self) -> list[str]:
        """The names it serves; raises as `draw`."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


class GroupWriter(Protocol):
    """Where the groups of served requests go."""

    async def write(
        self, request: DrawRequest, drawn: Drawn, scored: Scored, chosen: Sequence[int], rule: str
    ) -> str | None:
        """Keep one; returns why it is not kept, or None. `chosen`: those of its answers that were returned, best
        first; empty where none could be.

        It never fails a request: what could not be stored is counted and told.
        """
        ...

    async def close(self) -> None:
        """Write out what is still held."""
        ...
