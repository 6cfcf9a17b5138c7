"""What a server may send: bounded in bytes and seconds, packed or not, and read as one thing only."""

import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from nonpareil import answers
from nonpareil.answers import MOST_BYTES, answer_bytes
from nonpareil.engines.openai import OpenAIEngine
from nonpareil.engines.vllm.server import VLLMServerEngine
from nonpareil.errors import EngineError, NonpareilError, RemoteError, RewardError
from nonpareil.records import Group, Prompt, SamplingParams, ScoreRequest
from nonpareil.remote import JsonClient, run_coroutine
from nonpareil.rewards import RemoteReward
from nonpareil.rewards.judge.judge_reward import JudgeReward
from tests.hostile_server import Reply, answering, begin, body
from tests.tiny import make_tokenizer

TIMEOUT = 10.0
PROMPT = Prompt("p", "the film", [])
GROUP = Group("p", "q", [1], ["a", "bb"], [[1]] * 2, ["stop"] * 2, [[0.0]] * 2)


def client(url: str, timeout: float = TIMEOUT) -> object:
    async def work() -> object:
        async with JsonClient(url, timeout=timeout, max_concurrency=1, max_retries=0) as one:
            return await one.post("ask", {})

    return run_coroutine(work())


def engine(url: str, timeout: float = TIMEOUT) -> object:
    one = JsonClient(url, timeout=timeout, max_concurrency=1, max_retries=0)
    return OpenAIEngine("m", one, (PROMPT, SamplingParams(8))).describe()


def reward(url: str, timeout: float = TIMEOUT) -> object:
    return RemoteReward(f"json+{url}/#r", timeout=timeout, max_retries=0)


def judge(url: str, timeout: float = TIMEOUT) -> object:
    one = JudgeReward("m", url, timeout=timeout, max_retries=0, at_once=1)
    return one.score(ScoreRequest.of([GROUP]))


def vllm(url: str, timeout: float = TIMEOUT) -> object:
    return VLLMServerEngine(url, make_tokenizer(), frozenset({2}), startup_timeout=0.1, timeout=timeout)


ASKING = [client, engine, reward, judge, vllm]


def healthy(reply: Reply) -> Reply:
    """The same but for vLLM's /health, without which nothing else is asked."""
    return lambda handler: (body(b"") if handler.path == "/health" else reply)(handler)


def endless(pattern: bytes, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        begin(handler, **headers)
        while not handler.stopped.is_set():
            handler.wfile.write(pattern)

    return reply


def gzipped_spaces(count: int) -> bytes:
    """`count` MiB of spaces, a thousandth of that to send."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(count)) + packer.flush()


BOMB = gzipped_spaces(128)
FLOODS = {
    "endless": endless(b" " * 2**16),
    "endless list": endless(b'{"choices": [' + b"[" * 2**16),
    "gzip bomb": body(BOMB, Content_Encoding="gzip"),
    "gzip of gzips": endless(gzip.compress(b"") * 1000, Content_Encoding="gzip"),
    "gzip of nothing": endless(
        gzip.compress(b"")[:2] + b"\x08\x08" + b"name" * 2**14, Content_Encoding="gzip"
    ),
}


@pytest.mark.parametrize("ask", ASKING, ids=lambda ask: ask.__name__)
@pytest.mark.parametrize("flood", FLOODS)
def test_an_answer_is_bounded_also_when_it_is_unpacked(ask: Callable, flood: str) -> None:
    with answering(healthy(FLOODS[flood])) as url:
        tracemalloc.start()
        try:
            with pytest.raises(NonpareilError, match=r"longer than 16 MiB|cannot be unpacked"):
                ask(url)
            assert tracemalloc.get_traced_memory()[1] < 4 * MOST_BYTES
        finally:
            tracemalloc.stop()


def test_the_limit_is_named_and_room_enough_for_an_honest_answer() -> None:
    with answering(FLOODS["endless"]) as url, pytest.raises(RemoteError) as refused:
        client(url)
    assert str(refused.value) == (
        f"POST {url}/ask: the answer is longer than 16 MiB, far more than the request asks for; it was not read to "
        "its end"
    )
    # One token of a chat's answer as servers write it, at its longest.
    token = {
        "token": " internationalization",
        "logprob": -12.345678901234567,
        "bytes": [*b" internationalization"],
    }
    row = json.dumps({**token, "top_logprobs": []}) + ", 151935, "
    assert 64 * 4096 * len(row) < answer_bytes(64 * 4096, 64 * 4096)


@pytest.mark.parametrize("packed", [False, True])
def test_what_may_be_long_by_its_request_is_read(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 1000)
    text = "word " * 240
    choice = {"text": text, "finish_reason": "length", "index": 0}
    content = json.dumps({"choices": [choice]}).encode()
    reply = body(gzip.compress(content), Content_Encoding="gzip") if packed else body(content)
    with answering(reply) as url:
        one = JsonClient(url, timeout=TIMEOUT, max_concurrency=1, max_retries=0)
        drawn = OpenAIEngine("m", one, (PROMPT, SamplingParams(240))).draw([PROMPT], 1, SamplingParams(240))
        assert drawn[0].completions == [text]


@pytest.mark.parametrize(
    "size", [0, 1, answers.PIECE - 7, answers.PIECE - 2, answers.PIECE, 3 * answers.PIECE]
)
def test_what_is_packed_is_read_whole(size: int) -> None:
    text = "x" * size
    with answering(body(gzip.compress(json.dumps(text).encode()), Content_Encoding="GZip")) as url:
        assert client(url) == text


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (body(b"x", Content_Encoding="br"), "packed as 'br'; only gzip was asked for"),
        (body(gzip.compress(gzip.compress(b"1")), Content_Encoding="gzip, gzip"), "packed as 'gzip, gzip'"),
        (body(b"not packed", Content_Encoding="gzip"), "cannot be unpacked"),
        (body(gzip.compress(b"[1, 2]")[:-4], Content_Encoding="gzip"), "cannot be unpacked"),
        (body(gzip.compress(b"[1]") + b"more", Content_Encoding="gzip"), "cannot be unpacked"),
        (body(b'{"scores": [1], "scores": [2]}'), "names 'scores' twice"),
        (body(b"9" * 5000), "not JSON"),
        (body(b'{"a":' * 100_000), "not JSON"),
    ],
)
def test_what_cannot_be_read_as_one_thing_is_an_error(reply: Reply, says: str) -> None:
    with answering(reply) as url, pytest.raises(RemoteError, match=says):
        client(url)


def drip(first: bytes, each: bytes) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        while not handler.stopped.wait(0.05):
            handler.wfile.write(each)

    return reply


DRIPS = {
    "body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    "error": drip(b"HTTP/1.1 400 No\r\nContent-Length: 100000\r\n\r\n", b" "),
    "headers": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "chunks": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;ext=x\r\n \r\n"),
    "a chunk's extension": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "interim answers": drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_an_answer_has_one_deadline_however_it_drips(kind: str) -> None:
    with answering(DRIPS[kind]) as url:
        begun = time.monotonic()
        with pytest.raises(RemoteError, match=r"no whole answer within 0.3 s"):
            client(url, 0.3)
        assert time.monotonic() - begun < 2


def test_vllms_server_has_one_deadline_too() -> None:
    with (
        answering(healthy(DRIPS["headers"])) as url,
        pytest.raises(EngineError, match=r"did not answer /v1/models within 0.3 s"),
    ):
        vllm(url, 0.3)


def test_an_endless_error_is_an_error_with_its_beginning() -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        begin(handler, 400, Content_Type="text/html; charset=hex")
        while not handler.stopped.is_set():
            handler.wfile.write(b"no such model " * 1000)

    with (
        answering(reply) as url,
        pytest.raises(RemoteError, match="400 Bad Request: no such model") as refused,
    ):
        client(url)
    assert len(str(refused.value)) < 500


def test_redirects_are_not_followed() -> None:
    asked = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        body(b"gone", 307, Location="/elsewhere")(handler)

    with answering(reply) as url, pytest.raises(RemoteError, match="307 Temporary Redirect: gone"):
        client(url)
    assert asked == ["/ask"]


@pytest.mark.parametrize(
    "word", ["\x1b[2Jall is well", "a\u202eb", "x\nnonpareil: all is well", "half \ud83d"]
)
def test_a_servers_words_are_fit_for_a_terminal(word: str, caplog: pytest.LogCaptureFixture) -> None:
    for content in (json.dumps({"error": {"message": word}}).encode(), word.encode(errors="surrogatepass")):
        with (
            answering(body(content, 400)) as url,
            pytest.raises(RemoteError, match="400 Bad Request") as refused,
        ):
            client(url)
        assert str(refused.value).isprintable()
    with answering(body(json.dumps({"scores": [], "version": [word]}).encode())) as url:
        with pytest.raises(RewardError, match="must be a string") as unfit:
            reward(url)
        assert str(unfit.value).isprintable()
