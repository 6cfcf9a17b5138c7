"""A server on loopback that writes its answers byte by byte as a test says, until its client has gone."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(reply: Reply) -> Iterator[str]:
    """Its address. `reply` writes to the handler's `wfile`; the connection is closed behind it."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        stopped = stop

        def do_POST(self) -> None:
            self.close_connection = True
            self.rfile.read(int(self.headers.get("content-length") or 0))
            try:
                reply(self)
            except OSError:  # the client has had enough
                return

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        stop.set()
        http.shutdown()
        http.server_close()


def body(content: bytes, status: int = 200, **headers: str) -> Reply:
    """Answers this."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        begin(handler, status, Content_Length=str(len(content)), **headers)
        handler.wfile.write(content)

    return reply


def begin(handler: BaseHTTPRequestHandler, status: int = 200, **headers: str) -> None:
    """Status and headers."""
    handler.send_response(status)
    handler.send_header("Connection", "close")  # so that no client counts on it
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
