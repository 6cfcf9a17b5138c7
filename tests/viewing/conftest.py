"""One server with a few folders for all tests of the pages; skipped where the extra `view` is not installed."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.viewing.made import hostile, training_run, two_shards


@dataclass
class Running:
    """Pages on loopback."""

    address: str
    client: httpx.Client
    folder: Path

    def get(self, path: str, **asked: object) -> str:
        """A page, which must be there."""
        answer = self.client.get(path, params=asked or None, follow_redirects=True)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Groups 0: two shards; 1: texts of ill will; 2: those of 0 again. Runs 0 and 1: of three steps and of two."""
    for package in ("duckdb", "fastapi"):
        pytest.importorskip(package, reason="the pages need the extra view")
    uvicorn = pytest.importorskip("uvicorn", reason="the pages need the extra view")
    from nonpareil.viewing.app import app_of
    from nonpareil.viewing.server import listen
    from nonpareil.viewing.site import Site

    folder = tmp_path_factory.mktemp("view")
    groups = [("two", two_shards(folder / "two")), ("ill <will>", hostile(folder / "il[l] w*ill?"))]
    groups.append(("again", two_shards(folder / "again")))
    runs = [("run", training_run(folder / "run")), ("other run", training_run(folder / "other", 2))]
    app = app_of(Site.of(groups, runs), ["my-machine"])
    opened = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{opened.getsockname()[1]}"
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        yield Running(address, client, folder)
    server.should_exit = True
    thread.join(10)
    opened.close()
