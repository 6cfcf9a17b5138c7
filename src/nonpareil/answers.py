"""A server's answer, read with care: so many bytes and no more, by a deadline, and JSON that says one thing."""

import asyncio
import functools
import json
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import ssl

    import httpx

MOST_BYTES = 16 * 2**20
"""Of an answer, unpacked, where its request asks for nothing long: scores, verdicts, lists of models."""
BYTES_PER_TOKEN = 256
"""Of an answer that holds tokens: one with text, log-prob, bytes and id takes 150 in a chat, less elsewhere."""
BYTES_PER_ID = 12
ERROR_BYTES = 64 * 1024
"""Of an answer that is an error's: only its first words are shown."""
PIECE = 2**20
"""Bytes that are unpacked at once."""
ENCODINGS = ("", "identity", "gzip")


class UnusableAnswer(ValueError):
    """An answer that is too long, packed in a way that was not asked for, damaged, or ambiguous."""


@dataclass(frozen=True)
class Answer:
    """All of an answer; of an error's no more than its beginning."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the server did what it was asked."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The content as UTF-8, whatever the server calls it."""
        return self.content.decode(errors="replace")

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, of either form of the header; None where there is none that can be read."""
        given = self.headers.get("retry-after", "").strip()
        with suppress(ValueError):
            return max(0.0, float(given))
        try:
            return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
        except (TypeError, ValueError, OverflowError):
            return None


def answer_bytes(tokens: int, ids: int = 0) -> int:
    """Most bytes of an answer of so many tokens with their log-probs, and of so many bare ids beside them.

    64 completions of 4,096 tokens: 80 MiB, of which an honest answer takes the half.
    """
    return MOST_BYTES + BYTES_PER_TOKEN * tokens + BYTES_PER_ID * ids


@functools.cache
def certificates() -> "ssl.SSLContext":
    """Whom https trusts, read once for all clients of a process: more work than many a request."""
    import httpx

    return httpx.create_ssl_context()


async def fetch(
    http: "httpx.AsyncClient",
    method: str,
    url: str,
    content: bytes | None,
    *,
    timeout: float,
    most: int = MOST_BYTES,
) -> Answer:
    """Send one request and read the answer; no redirect is followed.

    Args:
        http: the connections.
        method, url, content: of the request.
        timeout: seconds from its sending to the last byte of the answer, however slowly that drips.
        most: bytes of the answer, as sent and unpacked.

    Raises:
        TimeoutError: no whole answer in time.
        UnusableAnswer: a longer one, or one that is damaged or packed otherwise than by gzip.
        httpx.HTTPError: no connection, or no HTTP.
    """
    headers = {"Accept-Encoding": "gzip"}
    async with (
        asyncio.timeout(timeout),
        http.stream(method, url, content=content, headers=headers, follow_redirects=False) as response,
    ):
        body = _Body(
            response.headers.get("content-encoding", ""), most if response.is_success else ERROR_BYTES
        )
        try:
            async for chunk in response.aiter_raw():
                body.add(chunk)
            body.end()
        except UnusableAnswer:
            if response.is_success:
                raise
        return Answer(response.status_code, response.reason_phrase, response.headers, bytes(body.content))


class _Body:
    """Gathers an answer's bytes, unpacking no more of them than may be kept."""

    def __init__(self, encoding: str, most: int) -> None:
        self.content = bytearray()
        self._encoding, self._most, self._arrived = encoding.strip().lower(), most, 0
        self._unpack = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS) if self._encoding == "gzip" else None

    def add(self, chunk: bytes) -> None:
        if self._encoding not in ENCODINGS:
            raise UnusableAnswer(f"the answer is packed as {self._encoding[:40]!r}; only gzip was asked for")
        self._arrived += len(chunk)
        if self._unpack is None:
            self._keep(chunk)
            return
        more = True
        while more:
            try:
                piece = self._unpack.decompress(chunk, PIECE)
            except zlib.error as error:
                raise UnusableAnswer(f"the answer cannot be unpacked: {error}") from error
            self._keep(piece)
            if self._unpack.unused_data:
                raise UnusableAnswer("the answer cannot be unpacked: it goes on behind the end of its gzip")
            chunk = self._unpack.unconsumed_tail
            more = bool(chunk) or len(piece) == PIECE  # of what was taken in, something may be waiting

    def _keep(self, piece: bytes) -> None:
        self.content += piece
        if max(len(self.content), self._arrived) > self._most:
            del self.content[ERROR_BYTES:]  # the error would hold on to it
            raise UnusableAnswer(
                f"the answer is longer than {self._most / 2**20:.4g} MiB, far more than the request asks for; "
                "it was not read to its end"
            )

    def end(self) -> None:
        if self._unpack is not None and not self._unpack.eof:
            raise UnusableAnswer("the answer cannot be unpacked: it ends before its gzip does")


def parse_json(content: bytes) -> Any:
    """The value of a JSON text; NaN and infinities, which Python's servers write, are read.

    Raises:
        UnusableAnswer: an object names something twice, so that readers may take it differently.
        ValueError, RecursionError: no JSON, or numbers and nesting beyond all use.
    """
    return json.loads(content, object_pairs_hook=_named_once)


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise UnusableAnswer(f"the answer names {twice[:40]!r} twice")
    return made


def shown(value: Any) -> str:
    """A parsed value as Python writes it, for a message; only escapes of what could act on a terminal."""
    try:
        return repr(value)
    except RecursionError:
        return "something too deeply nested"


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a string that files and programs can take: without a lone surrogate."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
