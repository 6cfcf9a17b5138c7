# ruff: noqa: E402
"""Draws that stop at a quantile: their law by enumeration, what they leave behind, and what is refused."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

for name in ("fastapi", "uvicorn", "prometheus_client", "openai"):
    pytest.importorskip(name, reason="the extra serve")

from nonpareil.maths.adaptive_n import quantile_threshold, threshold_draws
from nonpareil.rewards import load_rewards
from nonpareil.rollouts import read_groups
from nonpareil.serving.body import Defaults, asked_of
from nonpareil.serving.calibration import Calibration
from nonpareil.serving.group_folder import GroupFolder
from nonpareil.serving.records import Answer, Drawn, DrawRequest
from nonpareil.serving.scoring import Scorer
from nonpareil.serving.service import Bounds, Service
from nonpareil.serving.stopping import Goal, Stopping
from tests.serving.groups import ENGINE
from tests.serving.running import MODEL, Echo, loopback, served

SAMPLING = {"max_completion_length": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
VALUES = (1, 2, 3, 4, 5)
"""Rewards that are drawn alike often; their quantiles are .1, .3, .5, .7, .9."""


def number(completions, **columns):
    return [float(text) for text in completions]


def of_one_law() -> Calibration:
    return Calibration(np.array(list(itertools.permutations(VALUES)), dtype=float), SAMPLING)


@dataclass
class Listed:
    """An upstream that draws what it is told to, in order."""

    coming: list[int] = field(default_factory=list)

    async def draw(self, request: DrawRequest) -> Drawn:
        taken, self.coming = self.coming[: request.best_of], self.coming[request.best_of :]
        answers = [Answer(str(value), "stop") for value in taken]
        return Drawn(answers, 1, len(answers), MODEL, info={"max_tokens": 8})

    async def models(self) -> list[str]:
        return [MODEL]

    async def close(self) -> None:
        pass


def all_requests(best_of: int, max_draws: int, goal: Goal, writer: Any = None) -> list[Any]:
    """The replies to one request, for every sequence of draws that can come: each is as likely as any other."""
    upstream = Listed()
    stopping = Stopping(max_draws, goal, goal.calibration)
    defaults = Defaults(MODEL, best_of, 64, "best_of_n", 8, 60.0, {}, stopping)
    bounds = Bounds(running=1, waiting=1, tokens_per_request=None, tokens_per_minute=None)

    async def run() -> list[Any]:
        service = Service(upstream, Scorer(load_rewards([number])), defaults, bounds, writer=writer)
        replies = []
        for coming in itertools.product(VALUES, repeat=max_draws):
            upstream.coming = list(coming)
            replies.append(await service.answer(asked_of({"prompt": "hi"}, False, defaults)))
        await service.close()
        return replies

    return asyncio.run(run())


def test_draws_and_quality_are_those_of_the_formula():
    n, most = 4, 3
    threshold = quantile_threshold(float(n))
    assert threshold == pytest.approx(0.6)
    replies = all_requests(1, most, Goal(threshold, of_one_law()))
    draws = np.array([len(reply.drawn.answers) for reply in replies])
    # Without end it is (N + 1) / 2 draws, as `nonpareil curve --adaptive_n` says; they end at `max_draws`.
    assert draws.mean() == pytest.approx(threshold_draws(float(n)) * (1 - threshold**most))
    best = np.array([reply.scored.rewards[reply.chosen[0]] for reply in replies])
    quantiles, stopped = (best - 0.5) / len(VALUES), np.array([r.stop.why == "quantile" for r in replies])
    assert stopped.mean() == pytest.approx(1 - threshold**most)
    assert quantiles[stopped].mean() == pytest.approx(n / (n + 1))  # best-of-n's mean quantile
    assert quantiles[~stopped].max() < threshold
    assert set(draws[~stopped]) == {most}


def test_the_kept_first_rounds_are_plain_draws_and_all_that_was_drawn_is_not(tmp_path):
    with GroupFolder(tmp_path / "g", flush=1000) as groups:
        groups.begin(load_rewards([number]), {"path": MODEL}, ENGINE)
        replies = all_requests(2, 3, Goal(0.6, of_one_law()), groups)
    kept = read_groups(tmp_path / "g" / "text-n2-t1-max8")
    assert len(kept) == len(replies) == len(VALUES) ** 3
    assert {len(group) for group in kept} == {2}
    law, even = np.array([group.rewards for group in kept]), np.mean(VALUES)
    assert law.mean() == even
    assert (law.max(1).mean(), law.min(1).mean()) == (3.8, 2.2)  # of two plain draws
    whole = [np.mean(reply.scored.rewards) for reply in replies]
    assert np.mean(whole) > even + 0.1
    for group, reply in zip(kept, replies, strict=True):
        assert group.rewards == reply.scored.rewards[:2]
        assert group.columns["served_choice"] == [place for place in reply.chosen if place < 2]
        assert group.columns["served_rule"] == "best_of_n (max_draws=3, stop_at_quantile=0.6)"


@pytest.fixture(scope="module")
def numbers():
    app = Echo(message=lambda i: {"role": "assistant", "content": str(i)})
    with loopback(app.app()) as url:
        yield url


def ask(server, **fields):
    body = {"messages": [{"role": "user", "content": "hi"}], "seed": 0, "best_of": 2, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()


def said(completions, **columns):
    return [float(one[0]["content"]) for one in completions]


def test_a_request_says_its_own_quantile_and_is_told_those_of_its_answers(numbers):
    from nonpareil.serving.upstream import HttpUpstream

    calibration = of_one_law()
    source = HttpUpstream(f"{numbers}/v1", model=MODEL)
    stopping = Stopping(6, Goal(0.2, calibration), calibration)
    with served(source, said, stopping=stopping, max_tokens=8) as server:
        block = ask(server)["nonpareil"]
        assert (block["stopped"], block["draws"], block["stop_at_quantile"]) == ("max_draws", 6, 0.2)
        assert block["quantiles"] == [0, 0.1] * 3  # 0 is below all, 1 the lowest of five
        block = ask(server, stop_at_quantile=0.05)["nonpareil"]
        assert (block["stopped"], block["draws"], block["chosen"]) == ("quantile", 2, [1])
        block = ask(server, stop_at_reward=1, n=2, best_of=3)["nonpareil"]
        assert (block["stopped"], block["draws"], block["stop_at_reward"]) == ("reward", 3, 1.0)
        assert "quantiles" not in block
        assert 'nonpareil_stops_total{why="quantile"} 1.0' in httpx.get(f"{server.url}/metrics").text
        for fields, param, says in [
            ({"stop_at_quantile": 1}, "stop_at_quantile", "at least 0 and below 1"),
            ({"stop_at_quantile": "high"}, "stop_at_quantile", "must be a number"),
            (
                {"stop_at_quantile": 0.9999},
                "stop_at_quantile",
                "beyond what the calibration's rewards can tell",
            ),
            ({"stop_at_quantile": 0.5, "stop_at_reward": 1}, "stop_at_quantile", "give one of them"),
            ({"temperature": 0.5}, "temperature", "told by groups of temperature=1.0"),
            ({"max_completion_tokens": 9}, "max_completion_tokens", "groups of max_completion_tokens=8"),
            ({"logit_bias": {"5": 1}}, "stop_at_quantile", "plain draws, and here logit_bias was asked for"),
            ({"stop": "x"}, "stop", "told by groups of stop="),
            ({"stop": 5}, "stop_at_quantile", "plain draws, and here its stop is no text"),
        ]:
            error = ask(server, **fields)["error"]
            assert (error["code"], error["param"]) == (400, param), error
            assert says in error["message"], error
        assert ask(server, max_draws=2, temperature=0.5)["choices"]  # no quantile is needed
    with served(source, said) as server:
        error = ask(server, stop_at_quantile=0.5, max_draws=4)["error"]
        assert "no groups that tell quantiles (calibration); give stop_at_reward" in error["message"]


def test_without_a_reward_one_answer_is_served_as_it_is_drawn(numbers):
    from nonpareil.serving.upstream import HttpUpstream

    source = HttpUpstream(f"{numbers}/v1", model=MODEL)
    with served(source, None) as server:
        found = server.client().chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=0, seed=3
        )
        assert found.choices[0].message.content == "0"
        block = found.nonpareil
        assert (block["best_of"], block["chosen"], block["scores"]) == (1, [0], [None])
        assert block["null_reasons"] == ["the server has no reward"]
        for fields in ({"best_of": 2}, {"best_of": None, "n": 2}):
            error = ask(server, **fields)["error"]
            assert error["code"] == 400
            assert "it has no reward to choose among several by" in error["message"]
        page = httpx.get(f"{server.url}/metrics").text
        assert "nonpareil_rewards_null_total 0.0" in page
        assert "nonpareil_answers_drawn_total 1.0" in page
