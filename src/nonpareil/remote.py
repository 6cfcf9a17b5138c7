"""A small client of JSON over HTTP for engines and rewards: bounded, patient where waiting helps, and never stuck.

A request is tried again only where another try can help: 429, 5xx, timeouts and connection errors. Anything
else that the server refuses fails at once with what the server says.
"""

import asyncio
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from nonpareil.answers import MOST_BYTES, Answer, UnusableAnswer, certificates, fetch, parse_json, shown
from nonpareil.errors import ConfigError, RemoteError
from nonpareil.terminal import printable

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
DEFAULT_KEY = "OPENAI_API_KEY"
"""The environment variable of the key; this one may be unset, since servers of one's own ask for none."""
FIRST_WAIT = 0.5
"""Seconds before the first retry; doubled at each further one, with jitter."""
LONGEST_WAIT = 60.0
"""Seconds that a back-off of our own lasts at most."""
LONGEST_RETRY_AFTER = 600.0
"""Seconds that a server may ask us to wait; more is an error, not a night without a word."""
MESSAGE_LENGTH = 300


class JsonClient:
    """Requests to one server, `max_concurrency` at a time; use it as `async with`, once a loop or again.

    Args:
        base_url: `http://host:port/v1`, say; paths are put behind it.
        api_key_env: the environment variable whose value is sent as a bearer token. None sends none.
        timeout: seconds from a request's sending to the last byte of its answer.
        max_concurrency: requests under way at once; the others wait their turn.
        max_retries: further tries of a request, with exponential back-off and jitter. A 429, or any answer
            with Retry-After, makes every request wait, not only its own.

    Raises:
        ConfigError: a setting that cannot work, or a variable other than the default one that is unset.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str | None = DEFAULT_KEY,
        timeout: float,
        max_concurrency: int,
        max_retries: int,
    ) -> None:
        """See the class."""
        self.base_url = checked_base_url(base_url)
        check_timeout(timeout)
        if max_concurrency < 1:
            raise ConfigError(f"max_concurrency={max_concurrency} must be at least 1")
        if max_retries < 0:
            raise ConfigError(f"max_retries={max_retries} must be 0 or more")
        self._key = key_of(api_key_env)
        self._timeout, self._max_concurrency, self._max_retries = timeout, max_concurrency, max_retries
        self._http: httpx.AsyncClient | None = None
        self._told: set[str] = set()

    async def __aenter__(self) -> "JsonClient":
        import httpx

        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # Its own time-outs are of single reads: an answer that drips would never end. Ours is of the whole.
        # Nor is its limit of connections needed: requests wait at the semaphore, before their time begins.
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(headers=headers, timeout=None, limits=limits, verify=certificates())
        self._turn = asyncio.Semaphore(self._max_concurrency)
        self._quiet_until = 0.0
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._http is not None
        await self._http.aclose()
        self._http = None

    async def post(self, path: str, payload: Any, most: int = MOST_BYTES) -> Any:
        """The server's answer, parsed; `most` is how many bytes of it are read.

        Raises:
            RemoteError: refused, given up after `max_retries`, or an answer that is too long or not JSON.
        """
        return await self._request("POST", path, json.dumps(payload, allow_nan=False).encode(), most)

    async def get(self, path: str) -> Any:
        """As `post`, without a payload."""
        return await self._request("GET", path, None, MOST_BYTES)

    async def _request(self, method: str, path: str, content: bytes | None, most: int) -> Any:
        address = f"{method} {self.base_url}/{path.lstrip('/')}"
        async with self._turn:
            for tries in range(1, self._max_retries + 2):
                await self._quiet()
                try:
                    return await self._try(address, content, most)
                except _TryAgain as failure:
                    if tries > self._max_retries:
                        word = "try" if tries == 1 else "tries"
                        raise RemoteError(
                            f"gave up after {tries} {word}; the last: {failure}", address, failure.status
                        ) from failure
                    self._tell(f"{address}: {failure}; trying again, {self._max_retries} times at most")
                    await self._back_off(failure, tries, address)
        raise AssertionError("unreachable")

    async def _try(self, address: str, content: bytes | None, most: int) -> Any:
        import httpx

        if self._http is None:
            raise RuntimeError("a JsonClient is used as `async with`")
        method, url = address.split(" ", 1)
        try:
            answer = await fetch(self._http, method, url, content, timeout=self._timeout, most=most)
        except TimeoutError as error:
            raise _TryAgain(f"no whole answer within {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise _TryAgain(self._safe(f"{type(error).__name__}: {error}".rstrip(": "))) from error
        except (httpx.HTTPError, UnusableAnswer) as error:
            raise RemoteError(self._safe(str(error)), address) from error
        if answer.status == 429 or answer.status >= 500:
            raise _TryAgain(self._said(answer), answer.status, answer.retry_after)
        if not answer.is_success:
            raise RemoteError(self._said(answer), address, answer.status)
        try:
            return parse_json(answer.content)
        except UnusableAnswer as error:
            raise RemoteError(self._safe(str(error)), address) from error
        except (ValueError, RecursionError) as error:
            start = self.masked(answer.text)[:80]
            raise RemoteError(f"the answer is not JSON; it begins {start!r}", address) from error

    async def _back_off(self, failure: "_TryAgain", tries: int, address: str) -> None:
        jitter = random.uniform(0.5, 1.0)
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tries - 1)) * jitter
        if failure.retry_after is not None:
            if failure.retry_after > LONGEST_RETRY_AFTER:
                raise RemoteError(
                    f"{failure}; the server asks for {failure.retry_after:g} s of waiting, over the "
                    f"{LONGEST_RETRY_AFTER:g} s that are waited at most",
                    address,
                    failure.status,
                )
            wait = max(wait, failure.retry_after)
        if failure.status == 429 or failure.retry_after is not None:
            self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
        else:
            await asyncio.sleep(wait)

    async def _quiet(self) -> None:
        """Wait while the server has asked for quiet; then not all at once."""
        while (left := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, FIRST_WAIT))

    def _tell(self, words: str) -> None:
        """Warn, once each, so that a long wait is no riddle and a storm no flood."""
        if words not in self._told:
            self._told.add(words)
            logging.getLogger(__name__).warning(printable(words))

    def _said(self, answer: Answer) -> str:
        """Status and the server's own words, in the forms that servers have for them."""
        words: Any = answer.text
        with suppress(ValueError, RecursionError):
            words = parse_json(answer.content)
        for name in ("error", "message", "detail"):
            if isinstance(words, dict) and words.get(name):
                words = words[name]
        words = words if isinstance(words, str) else json.dumps(words)
        return self._safe(f"{answer.status} {answer.phrase}: {words}".rstrip(": "))

    def masked(self, words: str) -> str:
        """Without the key, which some servers and libraries repeat."""
        return words.replace(self._key, "***") if self._key else words

    def quoted(self, value: Any, length: int = 100) -> str:
        """The beginning of a parsed value, for a message: without the key, and fit for a terminal."""
        return self.masked(shown(value))[:length]

    def said(self, value: Any, length: int = 200) -> str:
        """Words of the server, likewise; what is not a string as Python writes it."""
        return printable(self.masked(value if isinstance(value, str) else shown(value))[:length])

    def _safe(self, words: str) -> str:
        """Without the key, short, and fit for a terminal."""
        words = self.masked(words)
        return printable(words if len(words) <= MESSAGE_LENGTH else words[:MESSAGE_LENGTH] + "...")


class _TryAgain(Exception):
    """A failure that another try may mend."""

    def __init__(self, reason: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status, self.retry_after = status, retry_after


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end, in a thread of its own where this one already runs a loop (a notebook does)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all together; the first failure ends the others and is raised as it is, in no group."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def checked_base_url(url: str, setting: str = "base_url") -> str:
    """The URL without its last slash.

    Raises:
        ConfigError: no http(s) address, or one with a password, a query or a fragment in it. The message names
            the setting and repeats no more than scheme and host.
    """
    import httpx

    url = url.strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not re.search(r"[?#\s]", url)
        str(parts.hostname).encode("idna")
        httpx.URL(url)
    except (
        ValueError,
        httpx.InvalidURL,
    ):  # a port that is no number, a broken IPv6 address, no name of a host
        usable = False
    if "@" in url:
        raise ConfigError(f"{setting} has a user or password in it; give the key in an environment variable")
    if not usable:
        raise ConfigError(
            f"{setting}={host_of(url)!r} must be an address such as http://127.0.0.1:8000/v1, without a query (?), "
            "a fragment (#) or spaces"
        )
    return url.rstrip("/")


def host_of(url: str) -> str:
    """Of what may be a URL, all that a message may show: scheme and host; no path, query, user or password."""
    scheme, _, rest = url.rpartition("://") if "@" in url else url.partition("://")
    if not rest:
        scheme, rest = "", url
    host = re.split(r"[/?#]", rest)[0] if "@" not in url else "***"
    return f"{scheme}://{host}" if scheme and "@" not in scheme else host


def check_timeout(seconds: float, setting: str = "timeout") -> None:
    """Refuse a limit that is none.

    Raises:
        ConfigError: naming the setting.
    """
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(f"{setting}={seconds} must be a positive number of seconds")


def key_of(variable: str | None, setting: str = "api_key_env") -> str | None:
    """The key in an environment variable; None without a variable, or where the default one is unset.

    Raises:
        ConfigError: naming setting and variable: it is unset, or its value can be no key.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY:
        raise ConfigError(f"{setting}={variable!r}: no such environment variable is set")
    if not (key.isascii() and all(c.isprintable() and c != " " for c in key)):
        raise ConfigError(f"{setting}={variable!r}: its value has characters that no key can have")
    return key or None
