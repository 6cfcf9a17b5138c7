"""Real HTTP servers on loopback, each answering by a function of the request."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any]
"""Status and body: bytes as they are, anything else as JSON."""


class Server:
    """What was asked so far, and where."""

    def __init__(self, port: int):
        self.port = port
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve(answer: Callable[[dict[str, Any]], Answer | Any], port: int = 0) -> Iterator[Server]:
    """A server whose answer to a request's JSON is `answer(json)`: a body, or (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                server.paths.append(self.path)
                server.keys.append(self.headers.get("Authorization"))
            said = answer(request)
            status, body = said if isinstance(said, tuple) else (200, said)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """A client that has gone away is part of the tests."""

    lock = threading.Lock()
    listening = Quiet(("127.0.0.1", port), Handler)
    server = Server(listening.server_address[1])
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()


def chat(content: Any, choices: int = 1) -> dict[str, Any]:
    """A chat completion that says `content`."""
    return {"choices": [{"index": i, "message": {"content": content}} for i in range(choices)]}


def answers_of(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers that a judge is shown by the template `{prompt}|{a}|{b}`."""
    _, a, b = request["messages"][0]["content"].split("|")
    return a, b


def longer(request: dict[str, Any]) -> dict[str, Any]:
    """A judge that prefers the longer answer."""
    a, b = map(len, answers_of(request))
    return chat("A" if a > b else "B" if b > a else "tie")


def prefers_the_first(request: dict[str, Any]) -> dict[str, Any]:
    """A judge that prefers whatever it reads first."""
    return chat("A")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
