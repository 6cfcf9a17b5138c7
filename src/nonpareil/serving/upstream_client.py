"""JSON requests to an upstream server on behalf of a client who waits: tried again by his deadline, no longer."""

import asyncio
import json
import logging
import math
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nonpareil.answers import MOST_BYTES, UnusableAnswer, certificates, fetch, parse_json
from nonpareil.answers import Answer as Response
from nonpareil.remote import DEFAULT_KEY, checked_base_url, key_of
from nonpareil.serving.records import UpstreamError
from nonpareil.terminal import printable

if TYPE_CHECKING:
    import httpx

FIRST_WAIT = 0.1
"""Seconds before the second try; doubled at each further one, with jitter. Somebody waits."""
LONGEST_WAIT = 8.0
LONGEST_QUIET = 60.0
"""Seconds that one Retry-After stops other requests, too; its own request is told all of it."""
MOST_TRIES = 12
"""Of one request, however far its deadline is."""
MESSAGE_LENGTH = 500
_REFUSED = (400, 404, 405, 409, 413, 415, 422)
"""Statuses by which a server says that the request itself is at fault."""


@dataclass(frozen=True)
class Reply:
    """What the upstream answered in the end."""

    content: Any
    """Parsed JSON."""
    tries: int


class UpstreamClient:
    """Requests to one upstream; of one event loop.

    Tried again are 429, 5xx, broken and refused connections, and answers that are cut, since another try can mend
    those. A 429, or any answer with Retry-After, makes every request wait, not only its own. Whatever cannot be
    done by the deadline is an `UpstreamError` that says what the upstream did.

    Args:
        base_url: `http://host:port/v1`, say.
        api_key_env: the environment variable whose value is sent as a bearer token; None sends none.
        try_timeout: most seconds of one try; None leaves it all that is left until the deadline.

    Raises:
        ConfigError: a setting that cannot work, or a variable other than the default one that is unset.
    """

    def __init__(
        self, base_url: str, *, api_key_env: str | None = DEFAULT_KEY, try_timeout: float | None = None
    ) -> None:
        """Connects to nothing yet."""
        self.base_url = checked_base_url(base_url)
        self._key = key_of(api_key_env)
        self._try_timeout = try_timeout
        self._http: httpx.AsyncClient | None = None
        self._quiet_until = 0.0
        self._told: set[str] = set()

    async def close(self) -> None:
        """Close the connections; a later request opens others."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def post(self, path: str, payload: Any, deadline: float, most: int = MOST_BYTES) -> Reply:
        """The upstream's answer to a JSON body, of which no more than `most` bytes are read.

        Raises:
            UpstreamError: refused (400), busy (429, 503) or broken (502) until the end, or too slow (504).
        """
        return await self._request(
            "POST", path, json.dumps(payload, allow_nan=False).encode(), deadline, most
        )

    async def get(self, path: str, deadline: float) -> Reply:
        """As `post`, without a body."""
        return await self._request("GET", path, None, deadline, MOST_BYTES)

    async def _request(
        self, method: str, path: str, content: bytes | None, deadline: float, most: int
    ) -> Reply:
        failure: _TryAgain | None = None
        for tries in range(1, MOST_TRIES + 1):
            await self._wait(tries, failure, deadline)
            left = deadline - time.monotonic()
            try:
                return Reply(await self._try(method, path, content, left, most), tries)
            except _TryAgain as again:
                failure = again
                self._hush(again)
                self._tell(path, again.error)
        assert failure is not None
        raise failure.error

    async def _try(self, method: str, path: str, content: bytes | None, left: float, most: int) -> Any:
        import httpx

        seconds = left if self._try_timeout is None else min(left, self._try_timeout)
        url = f"{self.base_url}/{path}"
        try:
            answer = await fetch(self._opened(), method, url, content, timeout=seconds, most=most)
        except TimeoutError as error:
            late = UpstreamError(
                504, "upstream_timeout", f"the upstream gave no whole answer within {seconds:.3g} s"
            )
            if seconds < left:
                raise _TryAgain(late) from error
            raise late from error
        except httpx.TransportError as error:
            words = self._safe(f"{type(error).__name__}: {error}".rstrip(": "))
            broken = UpstreamError(
                502, "upstream_connection", f"the connection to the upstream failed: {words}"
            )
            raise _TryAgain(broken) from error
        except (httpx.HTTPError, UnusableAnswer) as error:
            raise UpstreamError(502, "upstream_answer", f"the upstream: {self._safe(str(error))}") from error
        if not answer.is_success:
            raise self._refusal(answer)
        try:
            return parse_json(answer.content)
        except UnusableAnswer as error:
            raise UpstreamError(502, "upstream_answer", f"the upstream: {self._safe(str(error))}") from error
        except (ValueError, RecursionError) as error:
            # Of half an answer nothing is shown: it is somebody's.
            start = (
                "" if answer.text.lstrip()[:1] in "{[" else f"; it begins {self.masked(answer.text)[:80]!r}"
            )
            cut = UpstreamError(502, "upstream_answer", f"the upstream's answer is no JSON{start}")
            raise _TryAgain(cut) from error

    def _refusal(self, answer: Response) -> Exception:
        """What to raise for an error's answer."""
        said, param = self._words(answer)
        status, wait = answer.status, answer.retry_after
        words = f"the upstream answered {status} {answer.phrase}".rstrip() + (f": {said}" if said else "")
        if status in _REFUSED:
            return UpstreamError(400, "invalid_request_error", said or words, param=param)
        if status == 429:
            return _TryAgain(UpstreamError(429, "upstream_rate_limit", words, wait))
        if status == 503:
            return _TryAgain(UpstreamError(503, "upstream_unavailable", words, wait))
        error = UpstreamError(502, "upstream_error", words, wait)
        return _TryAgain(error) if status >= 500 or status == 408 else error

    async def _wait(self, tries: int, failure: "_TryAgain | None", deadline: float) -> None:
        """Wait as long as the upstream asked all to wait, or this request should before its next try.

        Raises:
            UpstreamError: the deadline comes first; it says what went wrong before.
        """
        quiet = self._quiet_until - time.monotonic()
        own = 0.0
        if failure is not None:
            own = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tries - 2)) * random.uniform(0.5, 1.0)
        left = deadline - time.monotonic()
        # All that waited for one moment would come at that moment: spread over a part of the wait.
        wait = max(own, quiet + random.uniform(0, min(1.0, quiet)) if quiet > 0 else 0.0)
        if failure is not None and failure.error.retry_after is not None:
            wait = max(wait, failure.error.retry_after)
        if wait < left:
            if wait > 0:
                await asyncio.sleep(wait)
            return
        if failure is not None:
            error = failure.error
            raise UpstreamError(
                error.status,
                error.kind,
                error.message,
                error.retry_after or math.ceil(max(wait, 1.0)),
                error.param,
            ) from failure
        if quiet > 0:
            raise UpstreamError(
                429, "upstream_rate_limit", "the upstream asked for a pause that outlasts the deadline", quiet
            )
        raise UpstreamError(504, "upstream_timeout", "no time was left to ask the upstream")

    def _hush(self, again: "_TryAgain") -> None:
        wait = again.error.retry_after
        if again.error.status == 429 or wait is not None:
            pause = FIRST_WAIT if wait is None else min(wait, LONGEST_QUIET)
            self._quiet_until = max(self._quiet_until, time.monotonic() + pause)

    def _opened(self) -> "httpx.AsyncClient":
        import httpx

        if self._http is None:
            headers = {"Content-Type": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            # Time is ours to keep (`fetch`), of the whole answer; who waits for a turn is the server's to say.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._http = httpx.AsyncClient(
                headers=headers, timeout=None, limits=limits, verify=certificates()
            )
        return self._http

    def _words(self, answer: Response) -> tuple[str, str | None]:
        """The upstream's own words for an error, and the field that it names."""
        words: Any = answer.text
        param = None
        with suppress(ValueError, RecursionError):
            words = parse_json(answer.content)
        for name in ("error", "message", "detail"):
            if isinstance(words, dict) and words.get(name):
                param = words["param"] if isinstance(words.get("param"), str) else param
                words = words[name]
        words = words if isinstance(words, str) else json.dumps(words)
        return self._safe(words), param

    def _tell(self, path: str, error: UpstreamError) -> None:
        """Warn once of each kind, so that a storm is no flood."""
        if (kind := f"{path} {error.kind}") not in self._told:
            self._told.add(kind)
            words = f"{path}: {error.message}; such requests are tried again until their client's deadline"
            logging.getLogger(__name__).warning(words)

    def masked(self, words: str) -> str:
        """Without the key, which some servers and libraries repeat."""
        return words.replace(self._key, "***") if self._key else words

    def _safe(self, words: str) -> str:
        words = self.masked(words)
        return printable(words if len(words) <= MESSAGE_LENGTH else words[:MESSAGE_LENGTH] + "...")


class _TryAgain(Exception):
    """A failure that another try may mend, as it is reported if none does."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(error.message)
        self.error = error
