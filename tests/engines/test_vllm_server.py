"""The same draws, pushes and canaries against vLLM's own server, a real one on loopback; and its faults."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nonpareil.engines.canary import Canary
from nonpareil.engines.vllm.server import VLLMServerEngine, server_command
from nonpareil.errors import ConfigError, EngineError, SyncError
from nonpareil.models.loading import end_token_ids
from nonpareil.records import SamplingParams
from tests.engines.test_vllm_push import trained, trainers
from tests.engines.vllm_models import CANARIES, save, tied_llama
from tests.tiny import UNEVEN, make_tokenizer, worst_error

SAMPLING = SamplingParams(max_completion_length=10, seed=3, temperature=0.8)
END_IDS = end_token_ids(tied_llama(), make_tokenizer())


@contextmanager
def serving(model: str, folder: Path) -> Iterator[str]:
    """vLLM's real server on loopback; its output goes to `folder/log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*server_command(model, port), "--dtype", "float32", "--enforce-eager"]
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with serving(save(tied_llama(), folder / "lm"), folder) as url:
        yield url


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[VLLMServerEngine]:
    engine = VLLMServerEngine(url, make_tokenizer(), END_IDS, startup_timeout=120, timeout=60)
    yield engine
    engine.release()


@pytest.mark.vllm
def test_draws_are_the_models_and_do_not_hang_on_their_neighbours(engine: VLLMServerEngine) -> None:
    engine.push_weights(tied_llama().state_dict().items())
    drawn = engine.draw(UNEVEN, 8, SAMPLING)
    assert worst_error(tied_llama(), UNEVEN, drawn, SAMPLING) < 1e-4
    assert [d.completion_token_ids for d in engine.draw(UNEVEN[1:3], 8, SAMPLING)] == [
        d.completion_token_ids for d in drawn[1:3]
    ]
    assert all(len({tuple(ids) for ids in d.completion_token_ids}) > 1 for d in drawn)
    other = engine.draw(UNEVEN, 8, replace(SAMPLING, seed=4))
    assert all(a.completion_token_ids != b.completion_token_ids for a, b in zip(drawn, other, strict=True))
    reasons = {
        (ids[-1] in END_IDS, reason)
        for d in drawn
        for ids, reason in zip(d.completion_token_ids, d.finish_reasons, strict=True)
    }
    assert reasons == {(True, "stop"), (False, "length")}
    assert engine.describe()["dtype"] == "float32"


@pytest.mark.vllm
def test_a_push_arrives_and_the_stale_head_and_the_missing_push_are_caught(
    engine: VLLMServerEngine, tmp_path: Path
) -> None:
    engine.push_weights(tied_llama().state_dict().items())
    canary = Canary(CANARIES, engine.dtype)
    assert canary.check(engine.completion_logprobs(CANARIES), trainers(tied_llama())) < 1e-4
    model = trained(1)
    with pytest.raises(SyncError, match="never arrived"):
        canary.check(engine.completion_logprobs(CANARIES), trainers(model))
    engine._post(
        "/collective_rpc",
        {"method": "reload_weights", "kwargs": {"weights_path": save(model, tmp_path / "new")}},
        "reload",
    )
    with pytest.raises(SyncError, match="tied to the embeddings"):
        canary.check(engine.completion_logprobs(CANARIES), trainers(model))
    engine.push_weights(model.named_parameters())
    assert canary.check(engine.completion_logprobs(CANARIES), trainers(model)) < 1e-4
    assert worst_error(model, UNEVEN, engine.draw(UNEVEN, 2, SAMPLING), SAMPLING) < 1e-4


@pytest.mark.vllm
def test_a_directory_that_the_server_cannot_see_is_an_error(engine: VLLMServerEngine) -> None:
    """The server's engine may not outlive this, so it comes last."""
    with pytest.raises(EngineError, match="did not run nonpareil_push_directory"):
        engine.push_weights("no/such/directory")


# --- Faults of a server, without vLLM


class Faulty(BaseHTTPRequestHandler):
    """Answers as vLLM's server does, but for the fault under test."""

    fault = ""
    started: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.answer({"/v1/models": {"data": [{"id": "m"}]}, "/version": {"version": "0"}}.get(path, {}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
        if self.path == "/collective_rpc":
            usual = {
                "dtype": "float32",
                "logprobs_mode": "processed_logprobs",
                "max_model_len": 64,
                "takes_adapters": False,
            }
            return self.answer({"results": [{**usual, **type(self).started}]})
        if self.fault == "slow":
            time.sleep(1.0)
        choice = {
            "token_ids": [7, 2],
            "logprobs": {"token_logprobs": [-1.0, -1.0]},
            "finish_reason": "stop",
            "prompt_token_ids": asked["prompt"],
        }
        choice |= {
            "no ids": {"token_ids": None},
            "no logprobs": {"logprobs": None},
            "wrong ending": {"finish_reason": "length"},
            "other prompt": {"prompt_token_ids": [9]},
            "ids are no list": {"token_ids": 7},
            "negative id": {"token_ids": [7, -2]},
            "id over the vocabulary": {"token_ids": [7, 10**6]},
            "ids with a fraction": {"token_ids": [7, 2.0]},
            "ids with a truth value": {"token_ids": [True, 2]},
            "log-prob above 0": {"logprobs": {"token_logprobs": [0.5, -1.0]}},
            "log-prob not a number": {"logprobs": {"token_logprobs": [float("nan"), -1.0]}},
            "log-prob a string": {"logprobs": {"token_logprobs": ["-1", -1.0]}},
            "log-probs of another form": {"logprobs": [-1.0, -1.0]},
            "log-prob too many": {"logprobs": {"token_logprobs": [-1.0] * 3}},
            "odd reason": {"finish_reason": ["stop"]},
        }.get(self.fault, {})
        count = 1 if self.fault == "one choice" else asked["n"]
        choices: Any = [{**choice, "index": i} for i in range(count)]
        if self.fault == "one index":
            choices = [{**each, "index": 1} for each in choices]
        if self.fault == "no index":
            choices = [choice] * count
        if self.fault == "choices are words":
            choices = ["stop"] * count
        self.answer({"choices": choices})

    def answer(self, content: Any) -> None:
        text = b"<html>" if self.fault == "no json" and "choices" in content else json.dumps(content).encode()
        self.send_response(503 if self.fault == "busy" and "choices" in content else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def faulty() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("one choice", "answered 1 choices where n=3"),
        ("no ids", "a completion of 0 tokens"),
        ("no logprobs", "0 log-probs for 2 tokens"),
        ("wrong ending", "ended by 'length'"),
        ("other prompt", "answered another prompt"),
        ("no json", "its answer is no JSON"),
        ("busy", "HTTP 503"),
        ("ids are no list", "token_ids that hold 7"),
        ("negative id", "token_ids that hold -2"),
        (
            "id over the vocabulary",
            "token_ids that hold 1000000; they must be token ids, whole numbers from 0 to",
        ),
        ("ids with a fraction", "token_ids that hold 2.0"),
        ("ids with a truth value", "token_ids that hold True"),
        ("log-prob above 0", "answered 0.5 as a log-prob"),
        ("log-prob not a number", "answered nan as a log-prob"),
        ("log-prob a string", "answered '-1' as a log-prob"),
        ("log-probs of another form", r"answered \[-1.0, -1.0\] as a log-prob"),
        ("log-prob too many", "3 log-probs for 2 tokens"),
        ("odd reason", "ended by None"),
        ("one index", "answered choices numbered"),
        ("no index", "answered without index"),
        ("choices are words", "answered without index"),
        ("slow", "did not complete a prompt within 0.4 s"),
    ],
)
def test_every_answer_is_checked(faulty: str, fault: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VLLMServerEngine(faulty, make_tokenizer(), frozenset({2}), startup_timeout=5, timeout=0.4)
    assert engine.draw(UNEVEN[:1], 3, SAMPLING)[0].completion_token_ids == [[7, 2]] * 3
    monkeypatch.setattr(Faulty, "fault", fault)
    with pytest.raises(EngineError, match=said):
        engine.draw(UNEVEN[:1], 3, SAMPLING)
    engine.release()


def test_a_server_started_otherwise_is_refused(faulty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for started in ({"logprobs_mode": "raw_logprobs"}, {"takes_adapters": True}):
        monkeypatch.setattr(Faulty, "started", started)
        with pytest.raises(ConfigError, match=r"--logprobs-mode processed_logprobs --worker-extension-cls"):
            VLLMServerEngine(faulty, make_tokenizer(), frozenset({2}), startup_timeout=5)


@pytest.mark.parametrize(
    "started", [{"max_model_len": "64"}, {"dtype": None}, {"vocab_size": True}, {"dtype": 32}]
)
def test_a_server_that_describes_itself_otherwise_is_refused(
    faulty: str, started: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "started", started)
    with pytest.raises(ConfigError, match=rf"answered {next(iter(started))}=.*start the server with"):
        VLLMServerEngine(faulty, make_tokenizer(), frozenset({2}), startup_timeout=5)


def test_no_server_is_told_in_time() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(EngineError, match=r"after 0.2 s the vLLM server at .* gives no answer"):
            VLLMServerEngine(nobody, make_tokenizer(), frozenset({2}), startup_timeout=0.2)
