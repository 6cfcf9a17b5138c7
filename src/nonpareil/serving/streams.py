"""Waiting for an answer while its client may leave, and telling it as server-sent events."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import Response

from nonpareil.serving.problems import body_of
from nonpareil.serving.records import UpstreamError
from nonpareil.serving.replies import Reply, event

Receive = Callable[[], Awaitable[Any]]
COMMENT = b": the answers are being drawn\n\n"
DONE = b"data: [DONE]\n\n"


class left(Exception):
    """The client has gone, and with it the work for it."""


async def watched(work: "asyncio.Future[Reply]", receive: Receive, seconds: float | None = None) -> Any:
    """What the work gives, or None where it takes longer than the seconds; a client that leaves ends it.

    Raises:
        left: the client has gone.
    """
    gone = asyncio.ensure_future(_gone(receive))
    both: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            await _ended(work)
            raise left
        return None
    except asyncio.CancelledError:
        await _ended(work)
        raise
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(work: "asyncio.Future[Reply]") -> None:
    work.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await work


class EventStream(Response):
    """A response that says it is alive until the answer is there, and then the answer.

    An error is an event of its own, and the stream is ended by `[DONE]` either way.
    """

    def __init__(
        self,
        work: "asyncio.Future[Reply] | Reply",
        keep_alive: float,
        describe: Callable[[BaseException], UpstreamError],
    ) -> None:
        """`describe`: an exception as the client is told of it."""
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._work, self._keep_alive, self._describe = work, keep_alive, describe

    async def __call__(self, scope: Any, receive: Receive, send: Callable[[Any], Awaitable[None]]) -> None:
        """Called by the server; a client that leaves ends the work for it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def say(content: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        try:
            reply = self._work if isinstance(self._work, Reply) else None
            while reply is None:
                await say(COMMENT)
                reply = await watched(self._work, receive, self._keep_alive)  # type: ignore[arg-type]
            for chunk in reply.chunks():
                await say(event(chunk))
        except left:
            return
        except Exception as error:  # noqa: BLE001 (told in the stream)
            await say(event(body_of(self._describe(error))))
        await say(DONE, more=False)
