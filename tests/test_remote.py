"""The client against servers that fail in every way, on loopback."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nonpareil import remote
from nonpareil.errors import ConfigError, RemoteError
from nonpareil.remote import JsonClient, run_coroutine

KEY = "sk-very-secret-0123456789"


class Server:
    """Answers each request with `reply(number of the request)`: (status, headers, body) or a function."""

    def __init__(self, reply: Callable):
        self.arrived: list[float] = []
        self.asked: list[tuple[str, str, dict, bytes]] = []
        self.busy = self.busiest = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with lock:
                    number = len(server.arrived)
                    server.arrived.append(time.monotonic())
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                headers = {name.lower(): value for name, value in self.headers.items()}
                length = int(self.headers.get("content-length") or 0)
                server.asked.append((self.command, self.path, headers, self.rfile.read(length)))
                try:
                    given = reply(number)
                    if callable(given):
                        self.close_connection = True
                        return given(self)
                    status, headers, body = given
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(body))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                finally:
                    with lock:
                        server.busy -= 1

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable], Server]]:
    servers = []

    def start(reply: Callable) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)


def good(value: object = "yes") -> tuple:
    return 200, {}, json.dumps(value).encode()


def refused(status: int, message: str = "", **headers: str) -> tuple:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message}}).encode()


def ask(url: str, payloads: list = [{}], get: bool = False, **settings) -> list:  # noqa: B006
    options = {"timeout": 5.0, "max_concurrency": 4, "max_retries": 2, **settings}

    async def together() -> list:
        async with JsonClient(url, **options) as client:
            if get:
                return [await client.get("models")]
            return await asyncio.gather(*(client.post("/ask", payload) for payload in payloads))

    return run_coroutine(together())


def test_an_answer_and_what_is_sent(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    server = serve(lambda number: good({"number": number}))
    assert ask(server.url + "/", [{"text": "ü\ud800"}], api_key_env="MY_KEY") == [{"number": 0}]
    assert ask(server.url, get=True, api_key_env=None) == [{"number": 1}]
    (command, path, headers, body), (get, models, bare, _) = server.asked
    assert (command, path, get, models) == ("POST", "/v1/ask", "GET", "/v1/models")
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in bare
    assert json.loads(body) == {"text": "ü\ud800"}


def test_it_works_inside_a_running_loop(serve):
    server = serve(lambda number: good())

    async def cell() -> list:
        return ask(server.url)

    assert asyncio.run(cell()) == ["yes"]


def test_500_then_good_is_tried_again(serve):
    server = serve(lambda number: good() if number == 2 else refused(500 + number, "boom"))
    assert ask(server.url) == ["yes"]
    assert len(server.arrived) == 3


def test_giving_up_says_how_often_and_why(serve):
    server = serve(lambda number: refused(503, f"busy {number}"))
    with pytest.raises(RemoteError) as caught:
        ask(server.url)
    assert caught.value.reason == "gave up after 3 tries; the last: 503 Service Unavailable: busy 2"
    assert str(caught.value) == f"POST {server.url}/ask: {caught.value.reason}"
    assert caught.value.status == 503


@pytest.mark.parametrize("status", [302, 400, 401, 404, 422])
def test_a_refusal_fails_at_once_with_the_servers_words(serve, status):
    server = serve(lambda number: refused(status, "no such thing"))
    with pytest.raises(RemoteError, match=f"{status} .*no such thing") as caught:
        ask(server.url)
    assert (len(server.arrived), caught.value.status) == (1, status)


@pytest.mark.parametrize(
    "body", [b'{"message": "why"}', b'{"detail": [{"msg": "why"}]}', b'{"error": "why"}', b"<html>why"]
)
def test_the_servers_words_in_any_form(serve, body):
    server = serve(lambda number: (400, {}, body))
    with pytest.raises(RemoteError, match=r"400 Bad Request: .*why"):
        ask(server.url)


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"half": ', b"[" * 100_000, b"\xff\xfe\xff"])
def test_what_is_not_json_is_an_error(serve, body):
    server = serve(lambda number: (200, {}, body))
    with pytest.raises(RemoteError, match="not JSON"):
        ask(server.url)
    assert len(server.arrived) == 1


def test_a_server_that_hangs_up_mid_answer_is_asked_again(serve):
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"half": ')

    server = serve(lambda number: good() if number == 1 else half)
    assert ask(server.url) == ["yes"]
    server = serve(lambda number: half)
    with pytest.raises(RemoteError, match="gave up after 3 tries; the last: RemoteProtocolError"):
        ask(server.url)


def test_a_dead_server_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(RemoteError, match=rf"POST {url}/ask: gave up after 2 tries; the last: ConnectError"):
        ask(url, max_retries=1)


def test_an_answer_that_drips_meets_its_deadline(serve):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(200):  # never silent for as long as the timeout
            try:
                handler.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.02)

    server = serve(lambda number: drip)
    started = time.monotonic()
    with pytest.raises(RemoteError, match=rf"{server.url}/ask: gave up after 1 try; .* within 0.1 s"):
        ask(server.url, timeout=0.1, max_retries=0)
    assert time.monotonic() - started < 2


def test_no_more_requests_at_once_than_asked_for(serve):
    def slowly(number: int) -> tuple:
        time.sleep(0.02)
        return good(number)

    server = serve(slowly)
    answers = ask(server.url, [{}] * 12, max_concurrency=3)
    assert sorted(answers) == list(range(12))
    assert server.busiest == 3


def test_a_429_makes_all_requests_wait(serve):
    def reply(number: int) -> tuple:
        if number == 0:
            return refused(429, "slow down", Retry_After="0.6")
        if number == 1:
            time.sleep(0.2)  # still under way when the other's refusal has long arrived
        return good(number)

    server = serve(reply)
    answers = ask(server.url, [{}] * 8, max_concurrency=2)
    # The one refused, and its neighbour that was under way; then quiet; then the rest.
    assert sorted(answers) == list(range(1, 9))
    early = [at for at in server.arrived if at - server.arrived[0] < 0.59]
    assert 1 <= len(early) <= 2, server.arrived


def test_a_storm_of_429_is_ridden_out(serve, caplog):
    server = serve(lambda number: refused(429, Retry_After="0.02") if number % 3 else good(number))
    answers = ask(server.url, [{}] * 10, max_concurrency=4, max_retries=50)
    assert len(answers) == 10
    assert all(number % 3 == 0 for number in answers)
    said = [record.getMessage() for record in caplog.records if record.name == "nonpareil.remote"]
    assert len(said) == 1, "once, however many were refused"
    assert f"{server.url}/ask: 429 Too Many Requests" in said[0]


def test_retry_after_as_a_date_and_one_that_is_too_far(serve):
    server = serve(lambda number: refused(429, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"))
    with pytest.raises(RemoteError, match=r"429 .*asks for [\d.e+]+ s of waiting, over the 600 s"):
        ask(server.url)
    server = serve(
        lambda number: good() if number else refused(503, Retry_After="Sat, 01 Jan 2000 00:00:00 GMT")
    )
    assert ask(server.url) == ["yes"]


def test_the_key_is_in_no_error(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for body in (refused(401, f"wrong key {KEY}"), refused(500, KEY), (200, {}, b" " * 60 + KEY.encode())):
        server = serve(lambda number, body=body: body)
        with pytest.raises(RemoteError) as caught:
            ask(server.url, max_retries=0)
        assert server.asked[0][2]["authorization"] == f"Bearer {KEY}"
        assert "very-secret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("localhost:8000", {}, "base_url='localhost:8000' must be an address such as http"),
        ("http://", {}, "must be an address"),
        ("http://a:port/", {}, "must be an address"),
        ("http://a/v1?key=1", {}, "must be an address"),
        ("http://\u2603.b:1/v1", {}, "must be an address"),
        ("http://a b/v1", {}, "must be an address"),
        ("http://a/v1#", {}, "a fragment"),
        ("http://a\x7f:80", {}, "must be an address"),
        ("http://a/\x01x", {}, "must be an address"),
        ("http://a..b/v1", {}, "must be an address"),
        ("http://a", {"timeout": 0.0}, "timeout=0.0 must be a positive"),
        ("http://a", {"max_concurrency": 0}, "max_concurrency=0"),
        ("http://a", {"max_retries": -1}, "max_retries=-1"),
        ("http://a", {"api_key_env": "NONPAREIL_UNSET"}, "'NONPAREIL_UNSET': no such environment variable"),
    ],
)
def test_settings_that_cannot_work_are_refused(url, settings, message):
    with pytest.raises(ConfigError, match=message):
        ask(url, **settings)


def test_secrets_in_settings_are_not_repeated(monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{KEY}\nü")
    urls = (f"http://me:{KEY}@a:x/", f"http://me:{KEY}/{KEY}@a", f"http://a/v1?api_key={KEY}", f"a?{KEY}")
    for url, settings in (*((url, {}) for url in urls), ("http://a", {"api_key_env": "MY_KEY"})):
        with pytest.raises(ConfigError) as caught:
            ask(url, **settings)
        assert "very-secret" not in str(caught.value)
