# ruff: noqa: E402
"""Draws in rounds, on loopback: they stop at a good answer, nothing is drawn twice, and what came stays."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

for name in ("fastapi", "uvicorn", "prometheus_client", "openai"):
    pytest.importorskip(name, reason="the extra serve")

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from nonpareil.models.endings import endings_of
from nonpareil.rewards import load_rewards
from nonpareil.rollouts import read_groups
from nonpareil.serving.group_folder import GroupFolder
from nonpareil.serving.local import LocalUpstream
from nonpareil.serving.records import DrawRequest
from nonpareil.serving.service import Bounds
from nonpareil.serving.upstream import HttpUpstream
from tests.serving.groups import ENGINE
from tests.serving.running import MODEL, Served, loopback, served
from tests.tiny import END, make_engine


def draw_of(seed: int) -> int:
    """The number that an upstream gives to a seed: 0 .. 99."""
    return random.Random(seed).randrange(100)


@dataclass
class Seeded:
    """An upstream that honours seeds as vLLM does: choice i of a request has the seed seed + i."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    fails: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Requests, by their place, that are answered by a status and words."""
    waits: dict[int, float] = field(default_factory=dict)
    left: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        async def complete(request: Request) -> Any:
            place, body = len(self.bodies), await request.json()
            self.bodies.append(body)
            until = time.monotonic() + self.waits.get(place, 0.0)
            while time.monotonic() < until:
                if await request.is_disconnected():
                    self.left += 1
                    return {}
                await asyncio.sleep(0.02)
            if place in self.fails:
                status, words = self.fails[place]
                return JSONResponse({"error": {"message": words}}, status)
            choices = [
                {
                    "index": i,
                    "finish_reason": "stop",
                    "text": f" {body['seed'] + i} {draw_of(body['seed'] + i)}",
                }
                for i in range(body["n"])
            ]
            usage = {"prompt_tokens": 5, "completion_tokens": 3 * body["n"]}
            return {"id": "x", "created": 0, "model": MODEL, "choices": choices, "usage": usage}

        app.add_api_route("/v1/completions", complete, methods=["POST"])
        return app


def number(completions, **columns):
    return [float(text.split()[1]) for text in completions]


def success(completions, **columns):
    """One answer of five."""
    return [float(int(text.split()[1]) < 20) for text in completions]


def rare(completions, **columns):
    """None unless it is a success."""
    return [1.0 if int(text.split()[1]) < 20 else None for text in completions]


def breaks_later(completions, **columns):
    """Scores the first call alone."""
    SCORED.append(len(completions))
    return [0.0 if len(SCORED) == 1 else None for _ in completions]


SCORED: list[int] = []


@pytest.fixture(scope="module")
def address():
    app = Seeded()
    with loopback(app.app()) as url:
        yield app, url


@pytest.fixture
def upstream(address):
    app, url = address
    app.bodies, app.fails, app.waits, app.left = [], {}, {}, 0
    return app, HttpUpstream(f"{url}/v1", model=MODEL)


def ask(server: Served, seed: int = 0, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "hi", "seed": seed, "best_of": 2, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30, verify=False).json()


def all_draws(seed: int, count: int) -> list[dict[str, Any]]:
    """What the upstream gives to a request's seed, in order."""
    payload = HttpUpstream("http://x/v1", model=MODEL)._payload(
        DrawRequest("hi", False, 1, seed, {}, 1e9), 1, 0
    )
    return [draw_of(payload["seed"] + i) for i in range(count)]


def test_it_stops_at_the_first_round_with_a_success_and_counts_all(upstream):
    app, source = upstream
    reasons = set()
    with served(source, success, most=(6, 1.0)) as server:
        for seed in range(16):
            draws = all_draws(seed, 6)
            rounds = next((r for r in (1, 2, 3) if any(d < 20 for d in draws[: 2 * r])), 3)
            found = ask(server, seed)
            block, answer = found["nonpareil"], found["choices"][0]["text"]
            assert block["draws"] == len(block["scores"]) == 2 * rounds
            assert block["scores"] == [float(d < 20) for d in draws[: 2 * rounds]]
            assert block["stopped"] == ("reward" if max(block["scores"]) else "max_draws")
            assert (int(answer.split()[1]) < 20) == bool(max(block["scores"]))
            assert found["usage"] == {
                "prompt_tokens": 5, "completion_tokens": 6 * rounds, "total_tokens": 5 + 6 * rounds
            }  # fmt: skip
            reasons.add((block["stopped"], rounds))
        assert {("reward", 1), ("reward", 2), ("max_draws", 3)} <= reasons
        page = httpx.get(f"{server.url}/metrics").text
        assert 'nonpareil_stops_total{why="reward"}' in page
    # An upstream that honours seeds is never asked for a draw twice.
    seeds = [body["seed"] + i for body in app.bodies for i in range(body["n"])]
    assert len(seeds) == len(set(seeds))


def test_several_answers_need_as_many_good_ones_and_a_stream_says_the_same(upstream):
    app, source = upstream
    with served(source, success, keep_alive=0.05) as server:
        fields = {"n": 2, "max_draws": 7, "stop_at_reward": 1.0, "best_of": 3}
        found = ask(server, 4, **fields)
        block = found["nonpareil"]
        good = sum(block["scores"])
        assert (block["stopped"] == "reward") == (good >= 2)
        assert block["draws"] in ((3, 6, 7) if good >= 2 else (7,))
        assert sorted(block["scores"], reverse=True)[:2] == [block["scores"][i] for i in block["chosen"]]
        app.waits = {len(app.bodies) + 1: 0.3}
        body = {"prompt": "hi", "seed": 4, "stream": True, **fields}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines.count(": the answers are being drawn") >= 2
        last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
        assert last["nonpareil"] == block


def test_an_engine_of_this_process_draws_others_in_each_round():
    engine = make_engine()
    source = LocalUpstream(
        engine,
        engine.tokenizer,
        MODEL,
        check=lambda prompt, sampling: None,
        ends=lambda prompt: endings_of(frozenset({END}), engine.tokenizer, [prompt]).ids,
    )
    request = DrawRequest("the film was", False, 4, 3, {"max_tokens": 8}, time.monotonic() + 60)

    async def rounds():
        try:
            return [await source.draw(replace(request, first=first)) for first in (0, 4, 8, 0)]
        finally:
            await source.close()

    drawn = [[tuple(one.token_ids) for one in found.answers] for found in asyncio.run(rounds())]
    assert drawn[3] == drawn[0]
    long = [ids for found in drawn[:3] for ids in found if len(ids) > 3]  # short ones may be drawn twice
    assert len(set(long)) == len(long) > 4


@pytest.mark.parametrize(
    ("prepared", "stopped", "by"),
    [
        ({"fails": {1: (422, "no more")}}, "error", "no more"),
        ({"waits": {1: 9.0}}, "deadline", None),
        ({"bounds": Bounds(4, 4, 17, None)}, "tokens", None),
        ({"bounds": Bounds(4, 4, None, 17)}, "tokens", None),
    ],
)
def test_answers_of_earlier_rounds_stay_answers(upstream, prepared, stopped, by):
    app, source = upstream
    app.fails, app.waits = prepared.get("fails", {}), prepared.get("waits", {})
    with served(source, number, seconds=1.0, most=(6, 100.0), bounds=prepared.get("bounds")) as server:
        found = ask(server, 1)
        block = found["nonpareil"]
        assert (block["stopped"], block.get("stopped_by"), block["draws"]) == (stopped, by, 2)
        assert block["scores"] == [float(one) for one in all_draws(1, 2)]
        assert number([found["choices"][0]["text"]]) == [max(block["scores"])]
        assert found["usage"]["completion_tokens"] == 6


def test_nulls_are_no_answers_and_what_a_later_round_drew_counts(upstream):
    app, source = upstream
    with served(source, rare, most=(40, 1.0)) as server:
        seed = next(s for s in range(99) if min(all_draws(s, 2)) >= 20 > min(all_draws(s, 40)))
        block = ask(server, seed)["nonpareil"]
        assert block["stopped"] == "reward"
        assert block["scores"][:2] == [None, None]
        assert block["scores"][block["chosen"][0]] == 1.0
        none = next(s for s in range(99) if min(all_draws(s, 4)) >= 20)
        error = ask(server, none, max_draws=4)["error"]
        assert (error["code"], "0 of 4 answers" in error["message"]) == (502, True)
        app.fails = {len(app.bodies) + 1: (422, "no more")}
        error = ask(server, none, max_draws=4)["error"]
        assert "0 of 2 answers" in error["message"]
        assert "a further round failed: no more" in error["message"]
    SCORED.clear()
    with served(source, breaks_later, most=(4, 1.0)) as server:
        found = ask(server)
        assert found["nonpareil"]["scores"] == [0.0, 0.0, None, None]
        assert found["usage"]["completion_tokens"] == 12


def test_who_leaves_in_a_later_round_ends_it_and_leaves_the_first_one(upstream, tmp_path):
    app, source = upstream
    app.waits = {1: 9.0}
    with GroupFolder(tmp_path / "g", flush=1) as groups:
        groups.begin(load_rewards([number]), {"path": MODEL}, ENGINE)
        with served(source, number, most=(6, 100.0), max_tokens=8, writer=groups) as server:
            body = {"prompt": "hi", "best_of": 2, "temperature": 1}
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.7)
            until = time.monotonic() + 5
            while (not app.left or server.service.inside) and time.monotonic() < until:
                time.sleep(0.02)
            assert (app.left, server.service.inside, len(app.bodies)) == (1, 0, 2)
    (group,) = read_groups(tmp_path / "g" / "text-n2-t1-max8")
    assert (len(group), group.columns["served_choice"]) == (2, [])


def test_the_first_round_is_kept_whatever_it_was_like(upstream, tmp_path):
    _, source = upstream
    with GroupFolder(tmp_path / "g", flush=1) as groups:
        groups.begin(load_rewards([number]), {"path": MODEL}, ENGINE)
        with served(source, number, max_tokens=8, writer=groups) as server:
            fields = {"max_draws": 4, "temperature": 1.0}
            assert ask(server, 1, stop_at_reward=-1.0, **fields)["nonpareil"]["draws"] == 2
            assert ask(server, 1, stop_at_reward=100.0, **fields)["nonpareil"]["draws"] == 4
            assert "draws" not in ask(server, 1, max_draws=2, temperature=1)["nonpareil"]
            ask(server, 1, best_of=1)
            page = httpx.get(f"{server.url}/metrics").text
        assert (groups.stored, len(groups.not_stored)) == (3, 1)
    assert "nonpareil_groups_total 3.0" in page
    assert 'nonpareil_groups_not_stored_total{why="best_of is 1, and a group compares draws"} 1.0' in page
    kept = read_groups(tmp_path / "g" / "text-n2-t1-max8")
    assert [group.rewards for group in kept] == [[float(one) for one in all_draws(1, 2)]] * 3
    assert [group.columns["served_rule"] for group in kept][1:] == [
        *("best_of_n (max_draws=4, stop_at_reward=100)", "best_of_n")
    ]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"max_draws": 4}, "max_draws", "give one of them"),
        ({"stop_at_reward": 1.0}, "stop_at_reward", "give both"),
        ({"max_draws": 1, "stop_at_reward": 1}, "max_draws", "less than best_of=2"),
        ({"max_draws": 65, "stop_at_reward": 1}, "max_draws", "more than this server draws, 64"),
        ({"max_draws": 4, "stop_at_reward": True}, "stop_at_reward", "a number"),
        ({"max_draws": 4, "stop_at_reward": 10**400}, "stop_at_reward", "a number"),
        ({"max_draws": 4, "stop_at_reward": 1, "rule": "soft:temperature=1"}, "rule", "max_draws=2"),
        ({"max_draws": 4, "stop_at_reward": 1, "best_of": 1, "temperature": 0}, "temperature", "max_draws=1"),
    ],
)
def test_what_cannot_be_is_refused_by_the_fields_name(plain, fields, param, says):
    error = ask(plain, **fields)["error"]
    assert (error["code"], error["param"]) == (400, param)
    assert says in error["message"]


@pytest.fixture(scope="module")
def plain(address):
    with served(HttpUpstream(f"{address[1]}/v1", model=MODEL), number) as server:
        yield server
