"""A server on loopback that takes what huggingface_hub pushes, in the hub's own protocol, commit by commit."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Commit:
    """What one push held."""

    message: str
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """The server's address, and its commits in their order."""

    endpoint: str
    commits: list[Commit] = field(default_factory=list)
    refuses: bool = False
    """Whether commits are answered by 403."""


@contextmanager
def local_hub() -> Iterator[Hub]:
    """The server, until the end."""
    hub = Hub("")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.answer({"error": "not found"}, 404)

        def do_POST(self) -> None:
            body = self.body()
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                self.answer({"url": f"{hub.endpoint}/{asked.get('organization') or 'me'}/{asked['name']}"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                paths = [one["path"] for one in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self.answer({"files": modes})
            elif "/commit/" in self.path and hub.refuses:
                self.answer({"error": "no right to write here"}, 403)
            elif "/commit/" in self.path:
                hub.commits.append(_read(body))
                url = f"{hub.endpoint}/me/tiny/commit/{len(hub.commits):040d}"
                self.answer({"commitUrl": url, "commitOid": url[-40:]})
            else:
                self.answer({"error": "not found"}, 404)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, content: dict[str, Any], status: int = 200) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _read(body: bytes) -> Commit:
    commit = Commit("")
    for line in body.splitlines():
        part = json.loads(line)
        if part["key"] == "header":
            commit.message = part["value"]["summary"]
        elif part["key"] == "file":
            commit.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
    return commit
