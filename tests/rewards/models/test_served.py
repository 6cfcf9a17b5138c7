"""A reward model behind a vLLM server: what is sent, what must be noticed, and equality with the model itself."""

import json
import math
import os
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

from nonpareil.errors import ModelError, RewardError
from nonpareil.rewards import RewardModel, ServedRewardModel, load_rewards
from tests.rewards.conftest import make_llama, make_tokenizer, request_of, varied_request
from tests.rewards.servers import Server, free_port, serve


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonpareil.remote.FIRST_WAIT", 0.001)


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
    with serve(answer) as server, pytest.raises(ModelError, match="answers 2 labels per text"):
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
