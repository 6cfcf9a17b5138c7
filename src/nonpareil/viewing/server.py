"""The pages served on a port of this machine, until Ctrl-C."""

import socket
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.terminal import reason_of

BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        ConfigError: the port is in use, or not to be had, or there is no such host here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"host={host!r} is no address of this machine: {reason_of(error)}; give 127.0.0.1"
        ) from error
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise ConfigError(
            f"port={port} of host={host!r} cannot be had: {error.strerror}; give another, or 0 for any free one"
        ) from error
    return opened


def serve(app: Any, opened: socket.socket) -> None:
    """Answer requests on a socket until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[opened])
