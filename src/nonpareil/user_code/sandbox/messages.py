"""Messages between the three processes of a job's outside: a length, then JSON."""

import json
import socket
from typing import Any


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    content = json.dumps(message).encode()
    return len(content).to_bytes(4, "big") + content


def unpack(content: bytes) -> dict[str, Any] | None:
    """The message that these bytes are; None where they are none, or not all of one."""
    if len(content) < 4 or len(content) - 4 != int.from_bytes(content[:4], "big"):
        return None
    return dict(json.loads(content[4:]))


def receive(connection: socket.socket) -> dict[str, Any]:
    """The next message of a connection.

    Raises:
        EOFError: the other end was closed.
    """
    size = int.from_bytes(_exactly(connection, 4), "big")
    return dict(json.loads(_exactly(connection, size)))


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(min(size - len(content), 1 << 20))
        if not piece:
            raise EOFError
        content += piece
    return content
