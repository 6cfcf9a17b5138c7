"""Rewards that a server computes: what it must answer, what a failure costs, and equality with the model itself."""

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError, DataError, ModelError, RemoteError, RewardError
from nonpareil.rewards import RemoteReward, RewardModel, ServedRewardModel, load_rewards
from nonpareil.rewards.endpoints.address import is_endpoint, parse_endpoint, public_name
from tests.rewards.conftest import make_llama, make_tokenizer, request_of, varied_request
from tests.rewards.servers import Server, serve

DATA = request_of(*((f"p{i}", "c" * i) for i in range(10)), answer=list(range(10)))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonpareil.remote.FIRST_WAIT", 0.001)


def lengths(request: dict[str, Any]) -> dict[str, Any]:
    return {"scores": [len(text) for text in request["completions"]]}


def remote(server: Server, **settings: Any) -> RemoteReward:
    return RemoteReward(f"json+{server.url}/score#length", **{"batch_size": 4, "max_retries": 2, **settings})


# --- Our own protocol


def test_scores_come_back_in_order_with_columns_sent() -> None:
    def by_answer(request: dict[str, Any]) -> dict[str, Any]:
        return {
            "scores": [
                p + len(c) / 100
                for p, c in zip(request["columns"].get("answer", []), request["completions"], strict=True)
            ]
        }

    with serve(by_answer) as server:
        scores = remote(server).score(DATA)
    assert scores.values == [i + i / 100 for i in range(10)]
    assert scores.failures == [None] * 10
    hello, *rest = server.requests
    assert hello == {"prompts": [], "completions": [], "columns": {}}
    assert sorted(len(request["completions"]) for request in rest) == [2, 4, 4]
    assert sorted(p for request in rest for p in request["prompts"]) == sorted(DATA.prompts)
    assert set(server.paths) == {"/score"}


def test_a_score_that_is_no_finite_number_is_null_with_its_reason() -> None:
    bad = [None, "3", True, float("nan"), float("inf"), 10**400, -0.5, None, [1], 2]

    def odd(request: dict[str, Any]) -> dict[str, Any]:
        places = [int(prompt[1:]) for prompt in request["prompts"]]
        reasons = ["timed out" if place == 7 else None for place in places]
        return {"scores": [bad[place] for place in places], "reasons": reasons}

    with serve(odd) as server:
        scores = remote(server).score(DATA)
    assert scores.values == [None] * 6 + [-0.5, None, None, 2.0]
    assert scores.failures[0] == "the server gave no score"
    assert scores.failures[7] == "timed out"
    assert scores.failures[3] == "the server's score is nan"
    assert [place for place, reason in enumerate(scores.failures) if reason] == [0, 1, 2, 3, 4, 5, 7, 8]


@pytest.mark.parametrize(
    "body",
    [{"scores": [1.0]}, {"scores": [1.0] * 5}, {"score": [1.0] * 4}, [1.0] * 4, "x", {"scores": "1234"},
     {"scores": [1.0] * 4, "reasons": ["x"]}],
)  # fmt: skip
def test_an_answer_of_another_form_is_an_error(body: Any) -> None:
    with serve(lambda request: body if request["prompts"] else {"scores": []}) as server:
        reward = remote(server)
        with pytest.raises(RewardError, match=r"answered .* for (4|2) completions|reasons must be a list of"):
            reward.score(DATA)


def test_a_key_that_a_server_repeats_is_in_no_error_and_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "sk-456")

    def leaky(request: dict[str, Any]) -> Any:
        count = len(request["prompts"])
        return {"scores": [None] * count, "reasons": ["wrong key sk-456"] * count} if count < 4 else "sk-456"

    with serve(leaky) as server:
        reward = remote(server, api_key_env="SCORE_KEY")
        assert reward.score(DATA.select([0])).failures == ["wrong key ***"]
        with pytest.raises(RewardError, match=r"answered '\*\*\*' for 4"):
            reward.score(DATA)


def fails(status: int, body: Any = b"busy") -> Callable[[dict[str, Any]], Any]:
    return lambda request: (status, body) if "p5" in request["prompts"] else lengths(request)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_that_fails_after_its_retries_costs_its_own_completions(status: int) -> None:
    with serve(fails(status)) as server:
        scores = remote(server).score(DATA)
    assert scores.values == [0, 1, 2, 3, None, None, None, None, 8, 9]
    assert all("gave up after 3 tries" in (reason or "") for reason in scores.failures[4:8])
    assert not any("127.0.0.1" in (reason or "") for reason in scores.failures)
    assert sum("p5" in request["prompts"] for request in server.requests) == 3


def test_an_answer_that_is_not_json_costs_its_own_completions() -> None:
    with serve(fails(200, b"<html>oops")) as server:
        scores = remote(server).score(DATA)
    assert scores.values[4:8] == [None] * 4
    assert scores.values[:4] == [0, 1, 2, 3]
    assert "not JSON" in (scores.failures[4] or "")


def test_a_slow_answer_costs_its_own_completions() -> None:
    def slow(request: dict[str, Any]) -> dict[str, Any]:
        time.sleep(1.0 if "p5" in request["prompts"] else 0)
        return lengths(request)

    with serve(slow) as server:
        scores = remote(server, timeout=0.3, max_retries=0).score(DATA)
    assert scores.values == [0, 1, 2, 3, None, None, None, None, 8, 9]
    assert "no whole answer within 0.3 s" in (scores.failures[4] or "")


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_request_is_an_error(status: int) -> None:
    with serve(fails(status, {"detail": "completions must be texts"})) as server:
        reward = remote(server)
        with pytest.raises(RewardError, match=rf"{status} .*completions must be texts"):
            reward.score(DATA)


def test_a_429_storm_passes() -> None:
    seen: dict[str, int] = {}

    def storm(request: dict[str, Any]) -> Any:
        key = str(request["prompts"])
        seen[key] = seen.get(key, 0) + 1
        return (429, {}) if seen[key] <= 2 else lengths(request)

    with serve(storm) as server:
        assert remote(server).score(DATA).values == list(range(10))
        assert len(server.requests) == 12


def test_a_server_that_dies_ends_the_run() -> None:
    with serve(lengths) as server:
        reward = remote(server)
    with pytest.raises(RewardError, match=r"3 of 3 requests failed.*run again when the server answers"):
        reward.score(DATA)


def test_a_server_that_goes_away_ends_the_run_however_few_requests_are_left() -> None:
    """Three failures are no sixteen, but their nulls would be stored for good."""
    answered = 0

    def leaves(request: dict[str, Any]) -> Any:
        nonlocal answered
        answered += 1
        return lengths(request) if answered <= 3 else (503, b"loading")

    with serve(leaves) as server:
        reward = remote(server, batch_size=2, at_once=1)
        with pytest.raises(RewardError, match=r"3 of 5 requests failed, the last 3 in a row.*run again when"):
            reward.score(DATA)


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with serve(lengths) as server:
        pass
    with pytest.raises(RemoteError, match=f"{server.url}/score: gave up after 3 tries"):
        remote(server)


def test_scores_of_two_versions_are_not_mixed() -> None:
    version = "1"

    def versioned(request: dict[str, Any]) -> dict[str, Any]:
        return {**lengths(request), "version": version}

    with serve(versioned) as server:
        reward = remote(server)
        assert reward.describe() == {"name": "length", "kind": "json endpoint", "version": "1"}
        reward.score(DATA)
        version = "2"
        with pytest.raises(RewardError, match="was '1' when the run began and is '2' now"):
            reward.score(DATA)
        assert remote(server).describe()["version"] == "2"


def test_a_column_without_a_form_in_json_is_named() -> None:
    with serve(lengths) as server, pytest.raises(DataError, match="set has no form in JSON"):
        remote(server).score(request_of(("p", "c"), tags=[{1, 2}]))


def test_the_docs_server_serves(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "endpoints-rewards.md").read_text()
    port = free_port()
    (tmp_path / "server.py").write_text(docs.split("```python")[1].split("```")[0].replace("8001", str(port)))
    process = subprocess.Popen([sys.executable, tmp_path / "server.py"], stderr=subprocess.DEVNULL)
    try:
        # The retries wait for it to start.
        reward = RemoteReward(f"json+http://127.0.0.1:{port}/#words", max_retries=10)
        assert reward.score(request_of(("p", "one two"), ("p", ""))).values == [2.0, 0.0]
        assert reward.describe()["version"] == "1"
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- Names


def test_a_reward_is_known_by_its_name_not_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "sk-456")
    described = []
    for _ in range(2):
        with serve(lengths) as server:
            reward = remote(server, api_key_env="SCORE_KEY")
            described.append(reward.describe())
            assert set(server.keys) == {"Bearer sk-456"}
            assert str(server.port) not in json.dumps(reward.describe())
    assert described[0] == described[1]
    assert "sk-456" not in json.dumps(described)


@pytest.mark.parametrize(
    "spec",
    [
        "http://h:1/score",
        "json+http://h:1/score",
        "json+http://h:1/score#",
        "json+http://h:1/score#a b",
        "json+http://h:1/score?x=1#a",
        "json+https://me:secret@h/score#a",
        "json+http://me:pa/secret@h/score",
        "json+http://h/score?key=secret",
        "json+http://h/score?key=secret#a",
        "grpc+http://h/score#a",
        "me:secret+http://h#a",
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_endpoint(spec)
    assert not re.search("//me:secret|/secret|=secret", str(refused.value))


def test_the_parts_of_an_endpoint() -> None:
    json_spec, vllm_spec = "json+https://h:1/v2/score#good", "vllm+http://127.0.0.1:8000#org/rm"
    assert vars(parse_endpoint(json_spec)) == {
        "kind": "json", "base_url": "https://h:1", "path": "/v2/score", "label": "good",
    }  # fmt: skip
    assert vars(parse_endpoint(vllm_spec)) == {
        "kind": "vllm", "base_url": "http://127.0.0.1:8000", "path": "classify", "label": "org/rm",
    }  # fmt: skip
    assert [public_name(spec) for spec in (json_spec, vllm_spec, "f.py:g")] == ["good", "org/rm", "f.py:g"]
    assert not any(map(is_endpoint, ("org/name", "./rm", "pkg.mod.fn", "file.py:fn", Path("x"))))


def test_endpoints_functions_and_settings_are_loaded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_KEY", "sk-456")

    def short(completions: list[str], **kwargs: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    with serve(lengths) as server:
        spec = f"json+{server.url}/score#length"
        both = load_rewards([short, spec, spec], weights=[1, 2, 3], api_key_env="SCORE_KEY")
        assert both.names == ["short", "length", "length_2"]
        assert both.score(DATA).values == [4.0 * i for i in range(10)]
        assert set(server.keys) == {"Bearer sk-456"}


# --- vLLM's classify route, as a server of ours speaks it: what is sent, and what must be noticed


def classify(score: Callable[[list[int]], float], **changes: Any) -> Callable[[dict[str, Any]], Any]:
    """A server of vLLM's form, sigmoid and all."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        logits = [score(ids) for ids in request["input"]]
        if changes.get("always_activated") or request["use_activation"]:
            logits = [1 / (1 + math.exp(-logit)) for logit in logits]
        rows = [
            {"index": i, "probs": [x] * changes.get("labels", 1), "num_classes": 1}
            for i, x in enumerate(logits)
        ]
        return {"data": rows[::-1], "model": changes.get("model", "/models/rm")}

    return answer


def vllm_reward(server: Server, path: str, **settings: Any) -> ServedRewardModel:
    return ServedRewardModel(f"vllm+{server.url}#{path}", **{"batch_size": 3, "max_retries": 1, **settings})


def test_token_ids_are_those_the_model_reads(llama_rm: str) -> None:
    data = varied_request(10)
    reading = {"append_eos": True, "prepend_bos": True}
    local = RewardModel(llama_rm, dtype="float32", device="cpu", **reading)
    with serve(classify(lambda ids: sum(ids) / 7 - 10)) as server:
        reward = vllm_reward(server, llama_rm, **reading)
        before = len(server.requests)
        scores = reward.score(data)
        sent = server.requests[before:]
    ids = local.inspect(data)
    assert reward.inspect(data) == ids
    assert scores.values == [sum(row) / 7 - 10 for row in ids]
    assert sorted(row for request in sent for row in request["input"]) == sorted(ids)
    assert {request["use_activation"] for request in sent} == {False}
    assert set(server.paths) == {"/classify"}


def test_an_end_token_that_is_the_pad_is_not_sent(save: Callable[..., str]) -> None:
    """`RewardModel` pools before it, and vLLM would at it."""
    path = save(make_llama(pad_token_id=2), make_tokenizer(pad="</s>"))
    data = varied_request(6)
    with serve(classify(lambda ids: len(ids) - 9.5)) as server:
        reward = vllm_reward(server, path, append_eos=True)
        before = len(server.requests)
        reward.score(data)
        sent = [row for request in server.requests[before:] for row in request["input"]]
    ids = reward.inspect(data)
    assert ids == RewardModel(path, append_eos=True, device="cpu").inspect(data)
    assert all(row[-1] == 2 for row in ids)
    assert sorted(sent) == sorted(row[:-1] for row in ids)


def test_another_model_than_the_named_one_is_refused(llama_rm: str) -> None:
    with serve(classify(lambda ids: len(ids) - 9.5, model="/models/other")) as server:
        with pytest.raises(ModelError, match=r"serves 'other' and not 'rm'.*--served-model-name rm"):
            vllm_reward(server, llama_rm)
        assert len(server.requests) == 1


def test_equal_texts_are_sent_once_and_tie(llama_rm: str) -> None:
    with serve(classify(lambda ids: time.perf_counter())) as server:
        reward = vllm_reward(server, llama_rm)
        before = len(server.requests)
        scores = reward.score(request_of(*[("the film ", "was good")] * 5, ("the film ", "was bad")))
        assert len(server.requests) - before == 1
    assert len(set(scores.values[:5])) == 1


def test_probabilities_in_place_of_logits_are_refused(llama_rm: str) -> None:
    answer = classify(lambda ids: sum(ids) / 7 - 10, always_activated=True)
    with serve(answer) as server, pytest.raises(ModelError, match="probabilities and no logits"):
        vllm_reward(server, llama_rm)


def test_a_classifier_of_two_labels_is_refused(llama_rm: str) -> None:
    answer = classify(lambda ids: 1.5, labels=2)
    with serve(answer) as server, pytest.raises(ModelError, match="answers 2 labels a text"):
        vllm_reward(server, llama_rm)


def test_too_few_scores_are_an_error(llama_rm: str) -> None:
    def few(request: dict[str, Any]) -> Any:
        answer = classify(lambda ids: len(ids) - 9.5)(request)
        return {**answer, "data": answer["data"][1:]} if len(request["input"]) == 3 else answer

    with serve(few) as server:
        reward = vllm_reward(server, llama_rm)
        with pytest.raises(RewardError, match="2 scores for 3 texts"):
            reward.score(varied_request(6))


def test_a_served_model_is_known_without_its_folder_or_host(llama_rm: str) -> None:
    with serve(classify(lambda ids: len(ids) - 9.5)) as server:
        described = vllm_reward(server, llama_rm).describe()
    assert described["served"] == "rm"
    assert described["fingerprint"] == RewardModel(llama_rm, device="cpu").describe()["fingerprint"]
    assert "127.0.0.1" not in json.dumps(described)
    assert str(server.port) not in json.dumps(described)


# --- vLLM itself


@contextmanager
def vllm_server(path: str) -> Iterator[str]:
    """The real server on a free port, ended with its children."""
    port = free_port()
    words = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path, "--runner", "pooling"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = Path(path).parent / "vllm.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            words, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()[-4000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


@pytest.mark.vllm
@pytest.mark.parametrize(("pad", "pad_id"), [("<pad>", 3), ("</s>", 2)])
def test_vllm_gives_the_reward_models_own_logits(save: Callable[..., str], pad: str, pad_id: int) -> None:
    pytest.importorskip("vllm", reason="needs the vllm extra")
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    path = save(make_llama(**sizes, pad_token_id=pad_id), make_tokenizer(pad=pad, chat=True))
    data = varied_request(24)
    talk = request_of(
        *(([{"role": "user", "content": "the film"}], f"was {w}") for w in ("good", "very bad"))
    )
    with vllm_server(path) as url:
        for reading in ({}, {"append_eos": True}):
            local = RewardModel(path, dtype="float32", device="cpu", **reading)
            served = load_rewards(f"vllm+{url}#{path}", **reading)
            for request in (data, talk):
                expected = local.score(request).values
                assert len(set(expected)) > 1
                assert served.score(request).values == pytest.approx(expected, abs=1e-3)


# --- Answers that are no scores


NESTED: list[Any] = []
for _ in range(300):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "score", [True, "1.0", [1.0], {"x": 1}, 10**4000, -(10**400), NESTED, "\x1b[2J", "\ud83d"]
)
def test_no_score_is_a_null_whose_reason_can_be_shown_and_stored(score: Any) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        count = len(request["prompts"])
        return {"scores": [score] * count, "reasons": [None, score, 3, NESTED][:count]}

    with serve(answer) as server:
        scores = remote(server).score(DATA.select([0, 1, 2, 3]))
    assert scores.values == [None] * 4
    assert all(reason and reason.isprintable() and len(reason) < 1000 for reason in scores.failures)
    assert (scores.failures[0] or "").startswith("the server's score is ")


@pytest.mark.parametrize("version", ["half \ud83d", ["x"], 3, True, NESTED])
def test_a_version_that_cannot_be_kept_is_an_error(version: Any) -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"scores": [], "version": version}

    with serve(answer) as server, pytest.raises(RewardError, match=r"answered version=.*must be a string"):
        remote(server)


@pytest.mark.parametrize(
    "answer",
    [5, [], "x", {"data": [{"index": [], "probs": [1.0]}]}, {"data": [{"index": True, "probs": [1.0]}] * 4},
     {"data": [{"index": i, "probs": [0.5]} for i in (0, 0, 1, 2)]}, {"data": [1]}],
)  # fmt: skip
def test_classify_answers_of_another_form_are_errors(answer: Any, llama_rm: str) -> None:
    with (
        serve(lambda request: answer) as server,
        pytest.raises(RewardError, match=r"reward 'rm' answered|answered"),
    ):
        vllm_reward(server, llama_rm)
