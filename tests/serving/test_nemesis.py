"""The whole server over an upstream that fails in every way, and many clients: nothing lost, nothing wrong."""

import asyncio
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("openai")

import httpx

from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rewards.endpoints.json_protocol import RemoteReward
from nonpareil.rollouts import read_groups
from nonpareil.serving.group_folder import GroupFolder
from nonpareil.serving.service import Bounds
from nonpareil.serving.upstream import HttpUpstream
from tests.serving.nemesis import MODEL, Nemesis, ask_all
from tests.serving.running import served

MENDED = ("429", "reset", "503", "cut", "cut json", "500", None, None)
"""What a second try mends."""


def luck(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that nobody can guess and everybody can check."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(hashlib.sha256(text.encode()).digest()[0]) for text in texts]


def reward() -> CombinedReward:
    return CombinedReward([FunctionReward(luck)])


def body(i: int, **fields: Any) -> dict[str, Any]:
    words = f"client {i} asks"
    prompt = {"prompt": words} if i % 2 else {"messages": [{"role": "user", "content": words}]}
    return {"model": MODEL, "seed": i, "best_of": 2 + i % 5, **prompt, **fields}


def check_answer(i: int, asked: dict[str, Any], response: httpx.Response) -> None:
    """It is this client's, the best of its own draws, and every token is counted."""
    assert response.status_code == 200, response.text
    answer = response.json()
    (choice,) = answer["choices"]
    text = choice["message"]["content"] if "messages" in asked else choice["text"]
    said = answer["nonpareil"]
    assert text.startswith(f"client {i} asks | ")
    assert len(said["scores"]) == asked["best_of"]
    assert luck([text])[0] == max(said["scores"]) == said["scores"][said["chosen"][0]]
    assert answer["usage"] == {
        **{"prompt_tokens": 3, "completion_tokens": 3 * asked["best_of"]},
        "total_tokens": 3 + 3 * asked["best_of"],
    }


def once_each(number: int, request: dict[str, Any]) -> str | None:
    """A fault on the first tries of a request, by its own words, and never on all."""
    words = str(request.get("messages") or request.get("prompt"))
    tries[words] += 1
    return (
        MENDED[int(hashlib.sha256(words.encode()).hexdigest(), 16) % len(MENDED)]
        if tries[words] < 3
        else None
    )


tries: Counter[str] = Counter()


def storm(clients: int, folder: Path | None = None, rounds: int = 1) -> list[int]:
    """Clients at once, each answered with its own; returns the memory after each round, in MiB."""
    memory = []
    with ExitStack() as stack:
        server = stack.enter_context(Nemesis(once_each, owner="vllm", ids=True, delay=0.01))
        upstream = HttpUpstream(server.url, model=MODEL, for_groups=folder is not None)
        asyncio.run(upstream.check(10))
        writer = None
        if folder is not None:
            writer = stack.enter_context(GroupFolder(folder))
            writer.begin(reward(), {"path": MODEL}, upstream.describe())
        bounds = Bounds(running=64, waiting=clients, tokens_per_request=None, tokens_per_minute=None)
        running = stack.enter_context(served(upstream, luck, bounds=bounds, writer=writer))
        for _ in range(rounds):
            tries.clear()
            bodies = [body(i) for i in range(clients)]
            for i, response in enumerate(ask_all(f"{running.url}/v1", bodies)):
                check_answer(i, bodies[i], response)
            memory.append(
                int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
            )
            server.posts.clear()
            server.headers.clear()
        assert running.service.inside == 0
        assert len([name for name in server.faults if name != "none"]) == 6
    return memory


def check_groups(folder: Path, clients: int, rounds: int) -> None:
    """Each request once, its answers its own, and the chosen one the best."""
    groups = [group for path in sorted(folder.glob("*-n*")) for group in read_groups(path)]
    words = Counter(g.prompt if isinstance(g.prompt, str) else g.prompt[0]["content"] for g in groups)
    assert words == {f"client {i} asks": rounds for i in range(clients)}
    for group in groups:
        prompt = group.prompt if isinstance(group.prompt, str) else group.prompt[0]["content"]
        assert all(text.startswith(f"{prompt} | ") for text in group.completions)
        assert len(set(group.completions)) == len(group)
        assert group.rewards == luck(group.completions)
        assert group.rewards[group.columns["served_choice"][0]] == max(group.rewards)
        assert set(map(tuple, group.completion_token_ids)) == {(7, 8, 2)}


def test_every_client_gets_its_own_best_through_storms_resets_and_cuts(tmp_path: Path) -> None:
    storm(40, tmp_path / "groups")
    check_groups(tmp_path / "groups", 40, 1)


@pytest.mark.slow
def test_200_clients_at_once_in_bounded_time_and_memory(tmp_path: Path) -> None:
    started = time.monotonic()
    memory = storm(200, tmp_path / "groups", rounds=8)
    seconds = time.monotonic() - started
    check_groups(tmp_path / "groups", 200, 8)
    print(f"1600 requests of 200 clients: {seconds:.1f} s, memory by round {memory} MiB")
    assert seconds < 240
    assert memory[-1] - memory[2] < 40  # MiB; after the first rounds nothing more is kept


def test_what_does_not_end_is_told_by_the_deadline_and_as_what_it_is() -> None:
    faults = {"1": "hang", "3": "429", "5": "few", "7": "400", "9": "401", "11": None}
    expected = {"1": 504, "3": 429, "5": 502, "7": 400, "9": 502, "11": 200}

    def by_client(number: int, request: dict[str, Any]) -> str | None:
        return faults[request["prompt"].split()[1]]

    with Nemesis(by_client) as server:
        upstream = HttpUpstream(server.url, model=MODEL)
        with served(upstream, luck, seconds=1.5) as running:
            bodies = [body(int(i)) for i in faults]
            begun = time.monotonic()
            answers = ask_all(f"{running.url}/v1", bodies)
            assert time.monotonic() - begun < 10
            assert {i: r.status_code for i, r in zip(faults, answers, strict=True)} == expected
            errors = {
                i: r.json()["error"] for i, r in zip(faults, answers, strict=True) if r.status_code != 200
            }
            assert {i: error["type"] for i, error in errors.items()} == {
                **{"1": errors["1"]["type"], "3": "upstream_rate_limit", "5": "upstream_answer"},
                **{"7": "invalid_request_error", "9": "upstream_error"},
            }
            assert errors["7"]["param"] == "temperature"
            assert int(answers[1].headers["retry-after"]) >= 1
            until = time.monotonic() + 5
            while server.open and time.monotonic() < until:
                time.sleep(0.01)
            assert server.open == 0  # nothing of those who were told is still drawn
            assert running.service.inside == 0


class _RewardServer:
    """Our JSON protocol, until it is closed."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import json

                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                content = json.dumps({"scores": [float(len(c)) for c in asked["completions"]]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"json+http://127.0.0.1:{self.http.server_address[1]}/score#remote"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def test_a_reward_server_that_goes_down_is_told_and_kept_as_nulls(tmp_path: Path) -> None:
    rewards = _RewardServer()
    remote = CombinedReward([RemoteReward(rewards.endpoint, max_retries=0)])
    with Nemesis() as server, GroupFolder(tmp_path / "g") as groups:
        groups.begin(remote, {"path": MODEL}, {"engine": "openai"})
        with served(HttpUpstream(server.url, model=MODEL), remote.rewards[0], writer=groups) as running:
            (well,) = ask_all(f"{running.url}/v1", [body(1, best_of=3)])
            assert well.status_code == 200
            rewards.close()
            (down,) = ask_all(f"{running.url}/v1", [body(1, best_of=3)])
    assert down.status_code == 502
    assert down.json()["error"]["type"] == "reward_error"
    kept = [group.rewards for path in (tmp_path / "g").glob("text*") for group in read_groups(path)]
    assert all(value is not None for value in kept[0])
    assert kept[1:] in ([], [[None, None, None]])  # never a number that stands for a failure
