"""The HTTP upstream against a server on loopback: what is passed on, tried again, and said of what fails."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from nonpareil.errors import ConfigError
from nonpareil.serving.records import Drawn, DrawRequest, UpstreamError
from nonpareil.serving.upstream import HttpUpstream
from nonpareil.serving.upstream_client import LONGEST_QUIET
from tests.serving.nemesis import MODEL, Nemesis

CHAT = [{"role": "user", "content": "hello there"}]


def asked(
    prompt: Any = "hello there", n: int = 4, seconds: float = 5.0, seed: int = 3, **fields: Any
) -> DrawRequest:
    chat = not isinstance(prompt, str)
    return DrawRequest(prompt, chat, n, seed, fields, time.monotonic() + seconds, MODEL)


def drawn(server: Nemesis, request: Callable[[], DrawRequest], **settings: Any) -> Drawn:
    async def work() -> Drawn:
        upstream = HttpUpstream(server.url, model=MODEL, **settings)
        try:
            await upstream.models()  # connected, so that the deadline's time is the draw's alone
            return await upstream.draw(request())
        finally:
            await upstream.close()

    return asyncio.run(work())


def checked(server: Nemesis, **settings: Any) -> HttpUpstream:
    upstream = HttpUpstream(server.url, **settings)
    asyncio.run(upstream.check(5))
    return upstream


@pytest.mark.parametrize("prompt", ["hello there", CHAT])
def test_n_answers_of_one_request_as_they_came_and_every_token_counted(prompt: Any) -> None:
    with Nemesis() as server:
        found = drawn(
            server, partial(asked, prompt, temperature=0.5, stop=["x"], tools=[{"a": 1}], logit_bias={"5": 1})
        )
    ((path, sent),) = server.posts
    assert path == ("completions" if isinstance(prompt, str) else "chat/completions")
    seed = sent.pop("seed")
    assert sent == {
        **{"model": MODEL, "n": 4, "prompt" if isinstance(prompt, str) else "messages": prompt},
        **{"temperature": 0.5, "stop": ["x"], "tools": [{"a": 1}], "logit_bias": {"5": 1}},
    }
    assert [one.text for one in found.answers] == [f"hello there | {seed + i}" for i in range(4)]
    if not isinstance(prompt, str):
        assert [one.message for one in found.answers] == [
            {"role": "assistant", "content": one.text, "refusal": None} for one in found.answers
        ]
    assert (found.prompt_tokens, found.completion_tokens, found.upstream_requests) == (2, 12, 1)
    assert found.model == MODEL
    assert {one.finish_reason for one in found.answers} == {"stop"}


def test_seeds_decide_draws_and_neighbouring_ones_share_none() -> None:
    with Nemesis() as server:
        first, again, next_ = (drawn(server, partial(asked, seed=seed)) for seed in (3, 3, 4))
    assert first.answers == again.answers
    assert not {one.text for one in first.answers} & {one.text for one in next_.answers}


def test_one_choice_a_request_where_a_server_ignores_n() -> None:
    with Nemesis(most=1) as server:
        found = drawn(server, partial(asked, n=5), choices_per_request=1)
        assert len({one.text for one in found.answers}) == 5
        assert (found.prompt_tokens, found.completion_tokens, found.upstream_requests) == (2, 15, 5)
        with pytest.raises(
            ConfigError, match=r"answers 1 choices to n=2: it ignores n.*choices_per_request 1"
        ):
            checked(server)
        checked(server, choices_per_request=1)


def test_the_check_names_what_is_wrong_with_the_server() -> None:
    with Nemesis(completions_only=True) as server:
        upstream = checked(server)
        assert upstream.describe() == {"engine": "openai", "model": MODEL, "server": "nobody"}
        with pytest.raises(
            ConfigError, match=f"does not serve it; did you mean '{MODEL}'.*its list has: {MODEL}"
        ):
            checked(server, model="tinny")
    with Nemesis(lists=False) as server:
        with pytest.raises(ConfigError, match="model is missing"):
            checked(server)
        checked(server, model=MODEL)
    for fault, words in {"no usage": "how many tokens", "401": "answered 401", "400": "refused, 400"}.items():
        with (
            Nemesis(lambda number, request, fault=fault: fault) as server,
            pytest.raises(ConfigError, match=words),
        ):
            checked(server)
    with pytest.raises(
        ConfigError, match=r"base_url='http://127.0.0.1:9/v1': the connection to the upstream failed"
    ):
        asyncio.run(HttpUpstream("http://127.0.0.1:9/v1").check(0.3))


@pytest.mark.parametrize("fault", ["429", "503", "500", "reset", "cut", "cut json", "not json"])
def test_what_another_try_mends_is_tried_again(fault: str) -> None:
    with Nemesis(lambda number, request: fault if number < 2 else None) as server:
        found = drawn(server, asked)
    assert len(server.posts) == found.upstream_requests == 3
    assert server.posts[0] == server.posts[2]
    assert len({one.text for one in found.answers}) == 4


@pytest.mark.parametrize(
    ("fault", "status", "kind", "tries"),
    [
        ("429", 429, "upstream_rate_limit", 2),
        ("429 later", 429, "upstream_rate_limit", 1),
        ("503", 503, "upstream_unavailable", 2),
        ("500", 502, "upstream_error", 2),
        ("401", 502, "upstream_error", 1),
        ("400", 400, "invalid_request_error", 1),
        ("reset", 502, "upstream_connection", 2),
        ("cut", 502, "upstream_connection", 2),
        ("not json", 502, "upstream_answer", 2),
        ("hang", 504, "upstream_timeout", 1),
        ("drip", 504, "upstream_timeout", 1),
        ("endless", 502, "upstream_answer", 1),
        ("few", 502, "upstream_answer", 1),
        ("many", 502, "upstream_answer", 1),
        ("twice", 502, "upstream_answer", 1),
        ("nan", 502, "upstream_answer", 1),
        ("no usage", 502, "upstream_answer", 1),
    ],
)
def test_what_goes_on_is_said_as_what_it_is_by_the_deadline(
    fault: str, status: int, kind: str, tries: int
) -> None:
    with Nemesis(lambda number, request: fault) as server:
        seconds = 20.0 if status == 502 and tries == 1 else 0.4  # those end by themselves
        with pytest.raises(UpstreamError) as caught:
            drawn(server, partial(asked, seconds=seconds, max_tokens=8))
    assert (caught.value.status, caught.value.kind) == (status, kind)
    assert len(server.posts) >= tries
    assert tries > 1 or len(server.posts) == 1
    assert status not in (429, 503) or caught.value.retry_after >= 1
    if fault == "429 later":
        assert caught.value.retry_after == 30
    if fault == "400":
        assert (caught.value.message, caught.value.param) == ("refused, 400", "temperature")


def test_one_retry_after_holds_back_every_request() -> None:
    async def work(server: Nemesis) -> None:
        upstream = HttpUpstream(server.url, model=MODEL)
        for _ in range(2):
            with pytest.raises(UpstreamError) as caught:
                await upstream.draw(asked(seconds=0.3))
            assert (caught.value.status, caught.value.kind) == (429, "upstream_rate_limit")
        await upstream.close()

    with Nemesis(lambda number, request: "429 later") as server:
        asyncio.run(work(server))
    assert len(server.posts) == 1  # the second asked for nothing
    assert LONGEST_QUIET >= 30


def test_who_goes_away_ends_the_upstreams_work() -> None:
    async def work(server: Nemesis) -> None:
        upstream = HttpUpstream(server.url, model=MODEL, choices_per_request=2)
        task = asyncio.create_task(upstream.draw(asked(n=6, seconds=60)))
        while server.open < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(300):
            if server.gone == 3:
                break
            await asyncio.sleep(0.01)
        assert (server.open, server.gone) == (0, 3)
        await upstream.close()

    with Nemesis(lambda number, request: "hang") as server:
        asyncio.run(work(server))


def test_a_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-secret")
    with Nemesis(lambda number, request: "500") as server:
        server.draw = None  # type: ignore[assignment]
        with pytest.raises(UpstreamError) as caught:
            drawn(server, partial(asked, seconds=0.2), api_key_env="UPSTREAM_KEY")
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value) + caplog.text
    with pytest.raises(ConfigError, match="no such environment variable"):
        HttpUpstream("http://127.0.0.1:9/v1", api_key_env="UNSET_KEY")


@pytest.mark.parametrize("prompt", ["hello there", CHAT])
def test_for_groups_the_sampling_is_stated_and_ids_are_asked_of_who_has_them(prompt: Any) -> None:
    with Nemesis(owner="vllm", ids=True) as server:
        upstream = checked(server, for_groups=True)

        async def work(**fields: Any) -> Drawn:
            found = await upstream.draw(asked(prompt, **fields))
            await upstream.close()
            return found

        plain, warm, cut = (asyncio.run(work(**f)) for f in ({}, {"temperature": 0.5}, {"stop": "x"}))
    sent = server.posts[-3][1]
    assert {k: sent[k] for k in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
        **{"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    }
    assert server.posts[-2][1]["temperature"] == 0.5
    assert plain.prompt_token_ids == [1, 5]
    assert {(*one.token_ids,) for one in plain.answers} == {(7, 8, 2)}
    assert all(one.token_logprobs == [-0.5] * 3 and one.logprobs is None for one in plain.answers)
    # At another temperature a server's log-probs are not what was sampled from; a stop string cuts text, not ids.
    assert all(one.token_ids and one.token_logprobs is None for one in warm.answers)
    assert all(one.token_ids is None for one in cut.answers)
    assert plain.info == {"max_tokens": 4096}


def test_equal_draws_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with Nemesis() as server:
        draw = server.draw
        server.draw = lambda request, chat: (
            draw({**request, "prompt": "same"}, chat)
            | {  # type: ignore[assignment]
                "choices": [
                    {"index": i, "finish_reason": "stop", "text": "same"} for i in range(request["n"])
                ]
            }
        )

        async def work() -> None:
            upstream = HttpUpstream(server.url, model=MODEL)
            for _ in range(6):
                await upstream.draw(asked())
            await upstream.close()

        asyncio.run(work())
    assert caplog.text.count("equal answers throughout") == 1
