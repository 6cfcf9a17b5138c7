"""A server of ours on loopback, in a thread; and a small upstream that keeps what it was sent."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from openai import OpenAI

from nonpareil.rewards import load_rewards
from nonpareil.serving.app import Pages, app_of
from nonpareil.serving.body import Defaults
from nonpareil.serving.running import Server, address_of, bound
from nonpareil.serving.scoring import Scorer
from nonpareil.serving.service import Bounds, Service
from nonpareil.serving.stopping import Goal, Stopping

MODEL = "tiny"


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service
    pages: Pages

    def client(self, **settings: Any) -> OpenAI:
        return OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 30, **settings}
        )


@contextmanager
def served(
    upstream: Any,
    reward: Callable[..., list[float | None]] | None,
    *,
    best_of: int = 4,
    max_tokens: int = 6,
    seconds: float = 30.0,
    bounds: Bounds | None = None,
    key: str | None = None,
    keep_alive: float = 0.2,
    stopping: Stopping | None = None,
    most: tuple[int, float] | None = None,
    **settings: Any,
) -> Iterator[Served]:
    bounds = bounds or Bounds(running=16, waiting=64, tokens_per_request=None, tokens_per_minute=None)
    if most is not None:
        stopping = Stopping(most[0], Goal(most[1]))
    known = None if reward is None else load_rewards([reward])
    defaults = Defaults(
        *(
            MODEL,
            1 if known is None else best_of,
            1 if known is None else 64,
            "best_of_n",
            max_tokens,
            seconds,
            {},
        ),
        stopping or Stopping(),
        known is not None,
    )
    service = Service(upstream, Scorer(known), defaults, bounds, **settings)
    pages = Pages(service, key=key, most_bytes=20_000, keep_alive=keep_alive)
    server = Server(app_of(pages), pages, grace=5.0)

    async def run() -> None:
        try:
            await server.serve(sockets=[here])
        finally:
            await service.close()

    with closing(bound("127.0.0.1", 0)) as here:
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            yield Served(address_of(here), service, pages)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@dataclass
class Echo:
    """An upstream app: its answers are numbered, it keeps the bodies, and it can be told to wait."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    wait: float = 0.0
    left: int = 0
    """Requests whose client went away."""
    message: Callable[[int], dict[str, Any]] = lambda i: {"role": "assistant", "content": f"answer {i}"}

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> Any:
            return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "echo"}]}

        async def complete(request: Request) -> Any:
            body = await request.json()
            self.bodies.append(body)
            until = time.monotonic() + self.wait
            while time.monotonic() < until:
                if await request.is_disconnected():
                    self.left += 1
                    return {}
                await asyncio.sleep(0.02)
            chat = "messages" in body
            choices = [
                {"index": i, "finish_reason": "tool_calls" if "tool_calls" in self.message(i) else "stop"}
                | ({"message": self.message(i)} if chat else {"text": f" answer {i}"})
                for i in range(body["n"])
            ]
            usage = {
                "prompt_tokens": 5,
                "completion_tokens": 3 * body["n"],
                "total_tokens": 5 + 3 * body["n"],
            }
            return {"id": "x", "created": 0, "model": MODEL, "choices": choices, "usage": usage}

        app.add_api_route("/v1/chat/completions", complete, methods=["POST"])
        app.add_api_route("/v1/completions", complete, methods=["POST"])
        return app


@contextmanager
def loopback(app: FastAPI) -> Iterator[str]:
    """The app's address while it runs."""
    with closing(bound("127.0.0.1", 0)) as here:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[here])))
        thread.start()
        try:
            yield address_of(here)
        finally:
            server.should_exit = True
            thread.join(20)
