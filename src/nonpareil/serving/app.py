"""The server's pages: OpenAI's endpoints, health, and metrics."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from nonpareil.serving.body import asked_of, read_json
from nonpareil.serving.problems import body_of, headers_of, refused
from nonpareil.serving.records import UpstreamError
from nonpareil.serving.replies import as_json
from nonpareil.serving.service import Service
from nonpareil.serving.streams import EventStream, left, watched

_log = logging.getLogger(__name__)


class Pages:
    """The handlers; each answers with OpenAI's error object where it cannot answer.

    Args:
        service: what answers requests.
        key: that clients must give; None asks for none.
        most_bytes: of a request's body.
        keep_alive: seconds between the comments of a stream while its answer is drawn.
    """

    def __init__(
        self, service: Service, *, key: str | None, most_bytes: int, keep_alive: float = 5.0
    ) -> None:
        """Nothing is served yet."""
        self.service, self._key, self._most_bytes = service, key, most_bytes
        self._keep_alive = keep_alive
        self.draining = False
        """Whether the server is stopping: what came before is answered, and nothing more."""
        self._since = int(time.time())

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._guarded(request, "chat", lambda: self._complete(request, chat=True))

    async def text(self, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._guarded(request, "completions", lambda: self._complete(request, chat=False))

    async def models(self, request: Request) -> Response:
        """`/v1/models`."""

        async def listed() -> Response:
            model = self.service.defaults.model
            one = {"id": model, "object": "model", "created": self._since, "owned_by": "nonpareil"}
            return _json({"object": "list", "data": [one]})

        return await self._guarded(request, "models", listed)

    async def health(self, request: Request) -> Response:
        """`/health`: 200 while requests are taken, 503 while the server stops."""
        return _json({"status": "stopping"}, 503) if self.draining else _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """`/metrics`."""

        async def page() -> Response:
            return Response(
                self.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
            )

        return await self._guarded(request, "metrics", page)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        if self.draining:
            raise UpstreamError(503, "server_stopping", "the server is stopping", retry_after=5)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise refused("give the header Content-Type: application/json", status=415)
        asked = asked_of(read_json(await self._body(request)), chat, self.service.defaults)
        work = asyncio.ensure_future(self.service.answer(asked))
        if not asked.stream:
            reply = await watched(work, request.receive)
            return _json(reply.whole())
        # An answer or an error that comes before the first comment has a status of its own.
        first = await watched(work, request.receive, self._keep_alive)
        return EventStream(work if first is None else first, self._keep_alive, self._describe)

    async def _body(self, request: Request) -> bytes:
        """All of it, and no more than may be.

        Raises:
            UpstreamError: 413.
        """
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > self._most_bytes:
                raise refused(f"the body has more than {self._most_bytes} bytes", status=413)
        return bytes(content)

    async def _guarded(
        self, request: Request, endpoint: str, page: Callable[[], Awaitable[Response]]
    ) -> Response:
        begun = time.monotonic()
        try:
            self._check_key(request)
            response = await page()
        except (ClientDisconnect, left):
            self.service.metrics.disconnects.inc()
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001 (told to the client, or kept in the log)
            problem = self._describe(error)
            response = _json(body_of(problem), problem.status, headers_of(problem))
        self.service.metrics.requests.labels(endpoint, str(response.status_code)).inc()
        self.service.metrics.request_seconds.observe(time.monotonic() - begun)
        return response

    def _describe(self, error: BaseException) -> UpstreamError:
        """An error as the client is told of it; of one that nobody expected, only that it was."""
        self.service.failed += 1
        if isinstance(error, UpstreamError):
            return error
        _log.error("a request failed", exc_info=error)
        return UpstreamError(
            500, "server_error", f"the server failed ({type(error).__name__}); its log says how"
        )

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._key.encode())
        if scheme.lower() != "bearer" or not same:
            raise UpstreamError(401, "invalid_api_key", "give the server's key: Authorization: Bearer KEY")


def _json(data: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(data), status, headers, media_type="application/json")


def app_of(pages: Pages) -> FastAPI:
    """The application; it offers no page of its own beside the endpoints."""
    app = FastAPI(title="Nonpareil", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/v1/chat/completions", pages.chat, methods=["POST"])
    app.add_api_route("/v1/completions", pages.text, methods=["POST"])
    app.add_api_route("/v1/models", pages.models, methods=["GET"])
    app.add_api_route("/health", pages.health, methods=["GET"])
    app.add_api_route("/metrics", pages.metrics, methods=["GET"])
    return app
