"""A server on a socket, from its start to its graceful end."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from nonpareil.errors import ConfigError
from nonpareil.serving.app import Pages
from nonpareil.terminal import tell

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address, taken before anything is loaded; port 0 takes a free one.

    Raises:
        ConfigError: the port is in use, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host={host!r} is no address of this machine: {error}") from error
    here = socket.socket(family, kind, protocol)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        here.bind(address)
        here.listen(2048)  # so that two servers cannot both be here
    except OSError as error:
        here.close()
        where = f"host={host!r}, port={port}"
        raise ConfigError(
            f"{where}: {error.strerror}; another server may be there: give another port"
        ) from error
    here.setblocking(False)
    return here


def address_of(here: socket.socket) -> str:
    """As clients name it."""
    host, port = here.getsockname()[:2]
    return f"http://[{host}]:{port}" if here.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's; a first SIGINT or SIGTERM ends it when what it was asked is answered, a second one at once."""

    should_exit: bool
    force_exit: bool

    def __init__(self, app: FastAPI, pages: Pages, grace: float) -> None:
        """`grace`: seconds that requests under way have after the first signal."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(grace)),
                timeout_keep_alive=30,
            )
        )
        self._pages = pages
        self.stopped_by: int | None = None

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        """Take no more requests, and end when those there are have been answered."""
        if self.should_exit:
            self.force_exit = True
            return
        self.stopped_by = number
        self.should_exit = True
        self._pages.draining = True
        waiting = int(self._pages.service.inside)
        if waiting:
            tell(f"stopping: {waiting} requests are still answered; press Ctrl-C again to stop at once")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Called by uvicorn; unlike its own, this does not raise the signal again at the end."""
        try:
            before: dict[int, Any] = {number: signal.signal(number, self.stop) for number in SIGNALS}
        except ValueError:  # not in the main thread: who runs it there stops it
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
