# ruff: noqa: E402
"""The server on loopback, asked by OpenAI's own client: an engine of this process behind it, and another server."""

import asyncio
import json
import threading
import time

import httpx
import pytest

for name in ("fastapi", "uvicorn", "prometheus_client", "openai"):
    pytest.importorskip(name, reason="the extra serve")

import openai

from nonpareil.models.endings import endings_of
from nonpareil.serving.local import LocalUpstream
from nonpareil.serving.service import Bounds
from nonpareil.serving.upstream import HttpUpstream
from tests.serving.running import MODEL, Echo, loopback, served
from tests.tiny import END, make_engine

TEMPLATE = "{% for m in messages %}<user> {{ m.content }} {% endfor %}<assistant>"
PROMPT = "the film was"
JSON = {"Content-Type": "application/json"}


def good(completions, **columns):
    """Ties often."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(text.split().count("good")) for text in texts]


def only_long(completions, **columns):
    return [None if len(text.split()) < 4 else 1.0 for text in completions]


def never(completions, **columns):
    return [None] * len(completions)


@pytest.fixture(scope="module")
def engine():
    engine = make_engine()
    engine.tokenizer.chat_template = TEMPLATE
    return engine


def local(engine):
    tokenizer = engine.tokenizer
    return LocalUpstream(
        engine,
        tokenizer,
        MODEL,
        check=lambda prompt, sampling: None,
        ends=lambda prompt: endings_of(frozenset({END}), tokenizer, [prompt]).ids,
    )


@pytest.fixture(scope="module")
def server(engine):
    with served(local(engine), good) as server:
        yield server


# --- An engine of this process


def test_the_answer_is_the_best_of_those_drawn_and_all_tokens_are_counted(server, engine):
    ask = server.client().completions.create
    one = ask(model=MODEL, prompt=PROMPT, seed=3, extra_body={"best_of": 8}, logprobs=0)
    block = one.nonpareil
    assert (block["best_of"], block["rule"], block["seed"]) == (8, "best_of_n", 3)
    assert block["scores"][block["chosen"][0]] == max(block["scores"]) > min(block["scores"])
    (choice,) = one.choices
    assert choice.text.split().count("good") == max(block["scores"])
    drawn = ask(model=MODEL, prompt=PROMPT, seed=3, n=8, extra_body={"best_of": 8}, logprobs=0)
    assert drawn.choices[0].text == choice.text
    counts = [each.text.split().count("good") for each in drawn.choices]
    assert counts == sorted(block["scores"], reverse=True)
    tokens = [len(each.logprobs.tokens) for each in drawn.choices]
    for each, length in zip(drawn.choices, tokens, strict=True):
        assert each.finish_reason == ("stop" if each.logprobs.tokens[-1] == "</s>" else "length")
        assert length == 6 or each.finish_reason == "stop"
    assert {each.finish_reason for each in drawn.choices} == {"stop", "length"}
    assert one.usage.completion_tokens == drawn.usage.completion_tokens == sum(tokens)
    assert one.usage.prompt_tokens == 4  # <s>, and a token a word


def test_ties_are_broken_by_the_seed(server):
    ask = server.client().completions.create
    chosen = set()
    for seed in range(12):
        block = ask(model=MODEL, prompt=PROMPT, seed=seed, max_tokens=1, extra_body={"best_of": 4}).nonpareil
        best = max(block["scores"])
        assert block["scores"][block["chosen"][0]] == best
        if block["scores"].count(best) == 4:
            chosen.add(block["chosen"][0])
    assert len(chosen) > 1


def test_a_request_is_answered_alike_alone_and_among_others(server):
    prompts = [f"the film was {word}" for word in ("good", "bad", "long", "not")]

    def one(prompt, seed):
        return server.client().completions.create(model=MODEL, prompt=prompt, seed=seed).to_dict()

    alone = {(p, s): one(p, s) for p in prompts for s in (1, 2)}

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            keys = [*alone, *alone]
            found = await asyncio.gather(
                *(client.completions.create(model=MODEL, prompt=p, seed=s) for p, s in keys)
            )
            return list(zip(keys, found, strict=True))

    for key, found in asyncio.run(together()):
        for name in ("choices", "usage", "nonpareil"):
            assert found.to_dict()[name] == alone[key][name]


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_says_what_the_whole_answer_says(server, chat):
    create = server.client().chat.completions.create if chat else server.client().completions.create
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    asked |= {"model": MODEL, "seed": 5, "n": 2}
    whole = create(**asked)
    chunks = list(create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert chunks[-2].nonpareil == whole.nonpareil
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        said = "".join((c.delta.content or "") if chat else c.text for c in mine)
        assert said == (choice.message.content if chat else choice.text)
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert not chat or mine[0].delta.role == "assistant"


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"tempersture": 1}, 400, "tempersture", "did you mean 'temperature'"),
        ({"extra_body": {}}, 400, "extra_body", "put its content beside model"),
        ({"model": "other"}, 404, "model", "this server has 'tiny'"),
        ({"prompt": ["a", "b"]}, 400, "prompt", "one text a request"),
        ({"prompt": [1, 2]}, 400, "prompt", "token ids"),
        ({"prompt": "  "}, 400, "prompt", "not empty"),
        ({"n": 9, "best_of": 4}, 400, "n", "lower n or raise best_of"),
        ({"best_of": 65}, 400, "best_of", "more than this server draws, 64"),
        ({"best_of": True}, 400, "best_of", "whole number"),
        ({"rule": "bestof"}, 400, "rule", "is no rule"),
        ({"rule": "best_of_n:n=9"}, 400, "rule", "9"),
        ({"temperature": 0}, 400, "temperature", "equal answers"),
        ({"temperature": "hot"}, 400, "temperature", "a number"),
        ({"top_p": 2}, 400, "top_p", "must lie in (0, 1]"),
        ({"max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ({"presence_penalty": 1}, 400, "presence_penalty", "not honoured"),
        ({"logprobs": 3}, 400, "logprobs", "not honoured"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream=true"),
        ({"seed": "x"}, 400, "seed", "whole number"),
        ({"stop": 5}, 400, "stop", "a list of texts"),
        ({"messages": []}, 400, "messages", "unknown field 'messages'"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused_by_the_fields_name(server, body, status, param, says):
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"{", JSON, 400, "not JSON"),
        (b"[]", JSON, 400, "must be a JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', JSON, 400, "'prompt' twice"),
        (b'{"prompt": "a", "temperature": NaN}', JSON, 400, "not JSON"),
        (b'{"prompt": "' + b"a" * 30_000 + b'"}', JSON, 413, "more than 20000 bytes"),
        (b'{"prompt": "a"}', {"Content-Type": "text/plain"}, 415, "application/json"),
    ],
)
def test_a_body_that_is_none_is_refused(server, content, headers, status, says):
    answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_a_chat_reads_texts_and_nothing_else(server):
    create = server.client().chat.completions.create
    parts = [{"type": "text", "text": "the film"}, {"type": "text", "text": " was"}]
    joined = create(model=MODEL, seed=1, messages=[{"role": "user", "content": parts}])
    as_one = create(model=MODEL, seed=1, messages=[{"role": "user", "content": "the film was"}])
    assert joined.choices == as_one.choices
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError, match="reads text alone"):
        create(model=MODEL, messages=[{"role": "user", "content": image}])
    with pytest.raises(openai.BadRequestError, match=r"tools=.*not honoured"):
        create(model=MODEL, messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}])


def test_pages_beside_the_answers(server):
    create = server.client().completions.create
    create(model=MODEL, prompt=PROMPT)
    with pytest.raises(openai.BadRequestError):
        create(model=MODEL, prompt=PROMPT, n=0)
    assert [model.id for model in server.client().models.list()] == [MODEL]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    page = httpx.get(f"{server.url}/metrics").text
    counted = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(counted["nonpareil_answers_drawn_total"]) > 0
    assert float(counted["nonpareil_requests_running"]) == 0
    assert float(counted["process_cpu_seconds_total"]) > 0
    assert float(counted['nonpareil_requests_total{endpoint="completions",status="400"}']) > 0
    assert httpx.get(f"{server.url}/docs").status_code == 404


# --- Rewards that are null


def test_a_null_reward_is_never_chosen(engine):
    with served(local(engine), only_long, best_of=8) as server:
        ask = server.client().completions.create
        nulls = 0
        for seed in range(6):
            one = ask(model=MODEL, prompt=PROMPT, seed=seed)
            nulls += one.nonpareil["scores"].count(None)
            assert one.nonpareil["scores"][one.nonpareil["chosen"][0]] == 1.0
            assert len(one.choices[0].text.split()) >= 4
        assert nulls > 0
        with pytest.raises(openai.InternalServerError, match="answers have a reward, and n=8 must") as failed:
            ask(model=MODEL, prompt=PROMPT, n=8, seed=0)
        assert failed.value.status_code == 502


@pytest.mark.parametrize("stream", [False, True])
def test_no_reward_at_all_is_an_error_or_the_fallback_that_was_asked_for(engine, stream):
    answered = pytest.raises(openai.APIError, match="0 of 4 answers have a reward")
    with served(local(engine), never) as server, answered:
        list(server.client().completions.create(model=MODEL, prompt=PROMPT, stream=stream))
    with served(local(engine), never, fallback="first") as server:
        one = server.client().completions.create(model=MODEL, prompt=PROMPT)
        assert (one.nonpareil["chosen"], one.nonpareil["fallback"]) == ([0], "first")
        assert one.nonpareil["scores"] == [None] * 4


# --- Another server behind it


@pytest.fixture
def echo():
    app = Echo()
    with loopback(app.app()) as url:
        yield app, url


def last(completions, prompts, **columns):
    """The higher the number, the better; of what a reward is given, all is text."""
    assert all(isinstance(message["content"], str) for prompt in prompts for message in prompt)
    return [float(text[0]["content"].rpartition(" ")[2].strip('"}')) for text in completions]


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 0}'}}


def test_what_draws_is_forwarded_and_tool_calls_come_back_unchanged(echo):
    app, url = echo
    app.message = lambda i: {"role": "assistant", "content": None, "tool_calls": [call(i)], "refusal": None}

    def call(i):
        return {**CALL, "function": {"name": "look", "arguments": json.dumps({"at": i})}}

    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    asked = {"messages": [{"role": "user", "content": "where?"}, {"role": "assistant", "tool_calls": [CALL]}]}
    asked["messages"].append({"role": "tool", "tool_call_id": "c1", "content": "there"})
    fields = {"temperature": 0.7, "tools": tools, "tool_choice": "auto", "max_completion_tokens": 9}
    fields |= {"response_format": {"type": "json_object"}, "stop": ["x"], "user": "me"}
    with served(HttpUpstream(f"{url}/v1", model=MODEL), calls_at) as server:
        create = server.client().chat.completions.create
        one = create(model=MODEL, **asked, **fields, extra_body={"best_of": 3, "min_p": 0.1})
        (body,) = app.bodies
        assert {name: body[name] for name in (*fields, "messages", "n", "min_p")} == {
            **fields, **asked, "n": 3, "min_p": 0.1
        }  # fmt: skip
        assert not {"best_of", "rule", "max_tokens", "stream"} & set(body)
        assert one.choices[0].message.to_dict() == app.message(2)
        assert (one.choices[0].finish_reason, one.usage.completion_tokens) == ("tool_calls", 9)
        deltas = [c.choices[0].delta for c in create(model=MODEL, **asked, **fields, stream=True)]
        assert deltas[1].tool_calls[0].to_dict() == {"index": 0, **call(3)}


def calls_at(completions, **columns):
    """Of a tool call, the number that it holds: the reward reads the call as JSON."""
    return [float(json.loads(json.loads(text[0]["content"])["arguments"])["at"]) for text in completions]


def test_a_client_that_leaves_ends_the_upstreams_work(echo):
    app, url = echo
    app.wait = 10.0
    with served(HttpUpstream(f"{url}/v1", model=MODEL), last) as server:
        messages = [{"role": "user", "content": "hi"}]
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=1).chat.completions.create(model=MODEL, messages=messages)
        body = {"messages": messages, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            assert next(answer.iter_lines()).startswith(":")
        until = time.monotonic() + 5
        while (app.left < 2 or server.service.inside) and time.monotonic() < until:
            time.sleep(0.02)
        assert (app.left, server.service.inside) == (2, 0)


def test_a_stream_is_kept_alive_and_its_error_is_an_error(echo):
    app, url = echo
    app.wait = 1.0
    with served(HttpUpstream(f"{url}/v1", model=MODEL), last, seconds=0.7, keep_alive=0.1) as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert answer.status_code == 200
        assert lines.count(": the answers are being drawn") >= 3
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == (504, "timeout") or error["code"] == 504
        assert lines[-1] == "data: [DONE]"
        with pytest.raises(openai.InternalServerError) as late:
            server.client().chat.completions.create(model=MODEL, messages=body["messages"])
        assert late.value.status_code == 504


def test_more_than_there_is_room_for_is_told_to_come_again(echo):
    app, url = echo
    app.wait = 0.6
    bounds = Bounds(running=1, waiting=1, tokens_per_request=40, tokens_per_minute=60)
    messages = [{"role": "user", "content": "hi"}]
    with served(HttpUpstream(f"{url}/v1", model=MODEL), last, bounds=bounds) as server:
        found = []

        def ask():
            body = {"messages": messages, "max_tokens": 1}
            found.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in found) == [200, 200, 429]
        refused = next(answer for answer in found if answer.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert server.client(max_retries=3).chat.completions.create(
            model=MODEL, messages=messages, max_tokens=1
        )
        with pytest.raises(openai.BadRequestError, match="one request may draw 40"):
            server.client().chat.completions.create(model=MODEL, messages=messages, max_tokens=11)
        # The echo counts 12 tokens of four answers, whatever was asked: less than 40 are left of 60 by now.
        with pytest.raises(openai.RateLimitError, match="of 60 a minute are left") as refused:
            server.client().chat.completions.create(model=MODEL, messages=messages, max_tokens=10)
        assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60


def test_a_key_that_is_asked_for_must_be_given(echo):
    _, url = echo
    with served(HttpUpstream(f"{url}/v1", model=MODEL), last, key="open sesame") as server:
        messages = [{"role": "user", "content": "hi"}]
        for wrong in (b"open", "open sesam\u00e9".encode(), b""):
            headers = {"Authorization": b"Bearer " + wrong} if wrong else {}
            for path in ("models", "../metrics"):
                assert httpx.get(f"{server.url}/v1/{path}", headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="wrong").chat.completions.create(model=MODEL, messages=messages)
        client = server.client(api_key="open sesame")
        (choice,) = client.chat.completions.create(model=MODEL, messages=messages).choices
        assert choice.message.content == "answer 3"
