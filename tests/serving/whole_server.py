"""The whole server on loopback, in a thread of its own, over any upstream and reward."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from nonpareil.rewards import CombinedReward
from nonpareil.serving.app import Pages, app_of
from nonpareil.serving.body import Defaults
from nonpareil.serving.records import GroupWriter, Upstream
from nonpareil.serving.running import Server, address_of, bound
from nonpareil.serving.scoring import Scorer
from nonpareil.serving.service import Bounds, Service

MODEL = "nemesis"


@dataclass
class Running:
    """A server that runs."""

    url: str
    service: Service


@contextmanager
def serving(
    upstream: Upstream,
    reward: CombinedReward,
    *,
    best_of: int = 4,
    seconds: float = 30.0,
    running: int = 64,
    waiting: int = 256,
    fallback: str = "none",
    writer: GroupWriter | None = None,
    max_tokens: int = 16,
) -> Iterator[Running]:
    """Its address ends in /v1."""
    here = bound("127.0.0.1", 0)
    defaults = Defaults(MODEL, best_of, 64, "best_of_n", max_tokens, seconds, {})
    started: list[Any] = []

    async def run() -> None:
        bounds = Bounds(running, waiting, None, None)
        service = Service(upstream, Scorer(reward), defaults, bounds, fallback=fallback, writer=writer)
        pages = Pages(service, key=None, most_bytes=2**20)
        server = Server(app_of(pages), pages, 10)
        started.append((server, service))
        try:
            await server.serve(sockets=[here])
        finally:
            await service.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    url = f"{address_of(here)}/v1"
    while not started:
        time.sleep(0.01)
    server, service = started[0]
    try:
        yield Running(url, service)
    finally:
        server.should_exit = True
        thread.join(30)
        here.close()
    assert not thread.is_alive()


def ask_all(url: str, bodies: list[dict[str, Any]], seconds: float = 60.0) -> list[httpx.Response]:
    """All at once, each from a client of its own; `stream` is not for this."""

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        path = "chat/completions" if "messages" in body else "completions"
        return await client.post(f"{url}/{path}", json=body)

    async def together() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=seconds, limits=limits) as client:
            return list(await asyncio.gather(*(one(client, body) for body in bodies)))

    return asyncio.run(together())
