"""The servers that people run, on loopback: vLLM's (marked vllm) and `transformers serve` (marked slow)."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from nonpareil.engines.openai import OpenAIEngine
from nonpareil.errors import RemoteError
from nonpareil.records import Prompt, SamplingParams
from nonpareil.remote import JsonClient
from tests.tiny import END, PAD, make_model, make_tokenizer, worst_error

SAMPLING = SamplingParams(max_completion_length=8, seed=5)
DEADLINE = 300.0
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """A tiny model on disk whose generation_config asks for what nobody who samples the policy wants."""
    folder = tmp_path_factory.mktemp("policy")
    # Heads of 32 entries, the least that vLLM's attention on CPU takes.
    model = make_model(hidden_size=128, head_dim=32, num_attention_heads=4, num_key_value_heads=2)
    model.generation_config.update(top_k=1, repetition_penalty=3.0, eos_token_id=END, pad_token_id=PAD)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(*command: str, **environment: str) -> Iterator[str]:
    """The address of a server of one's own, which has ended when the block has."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = [*command, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        words,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()


def _wait(process: subprocess.Popen, url: str) -> None:
    os.set_blocking(process.stdout.fileno(), False)
    said, until = b"", time.monotonic() + DEADLINE
    while time.monotonic() < until:
        said += process.stdout.read() or b""
        assert process.poll() is None, said.decode()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                os.set_blocking(process.stdout.fileno(), True)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer:\n{said.decode()[-3000:]}")


def prompts_of(folder: Path, kind: str) -> list[Prompt]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["the film", "a good", "not very dull", "was long and", "bad"]
    if kind == "ids":
        return [Prompt(f"i{i}", text, tokenizer(text)["input_ids"]) for i, text in enumerate(texts)]
    if kind == "text":
        return [Prompt(f"t{i}", text, []) for i, text in enumerate(texts)]
    return [Prompt(f"c{i}", [{"role": "user", "content": text}], []) for i, text in enumerate(texts)]


def engine_of(url: str, model: str, prompt: Prompt, sampling: SamplingParams = SAMPLING) -> OpenAIEngine:
    client = JsonClient(url, timeout=120, max_concurrency=4, max_retries=2)
    return OpenAIEngine(model, client, (prompt, sampling))


@pytest.fixture(scope="module")
def vllm_url(policy) -> Iterator[str]:
    pytest.importorskip("vllm")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)]
    flags = ["--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32", "--max-model-len", "64"]
    with serving(*command, *flags, VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind") as address:
        yield address


@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["ids", "text", "chat"])
def test_vllms_draws_are_the_policys(vllm_url, policy, kind):
    prompts = prompts_of(policy, kind)
    engine = engine_of(vllm_url, "tiny", prompts[0])
    assert engine.describe() == {
        "engine": "openai",
        "model": "tiny",
        "server": "vllm",
        "endpoint": "chat/completions" if kind == "chat" else "completions",
        "token_ids": True,
        "logprobs": True,
        "special_tokens": "in the text",
    }
    drawn = engine.draw(prompts, 6, SAMPLING)
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    read = [Prompt(p.prompt_id, p.prompt, d.prompt_token_ids) for p, d in zip(prompts, drawn, strict=True)]
    assert worst_error(model.float().eval(), read, drawn, SAMPLING) < 1e-3
    for prompt, draws in zip(read, drawn, strict=True):
        if kind == "chat":
            words = tokenizer.apply_chat_template(prompt.prompt, add_generation_prompt=True)["input_ids"]
        else:
            words = tokenizer(prompt.prompt)["input_ids"]
        assert prompt.token_ids == words
        assert len(draws.completions) == 6
        for ids, reason in zip(draws.completion_token_ids, draws.finish_reasons, strict=True):
            assert reason == ("stop" if ids[-1] == END else "length")
    # top_k=1 of the generation_config would make them all equal.
    assert len({tuple(ids) for draws in drawn for ids in draws.completion_token_ids}) > 15


@pytest.mark.vllm
def test_vllms_logprobs_at_a_temperature_are_of_another_distribution(vllm_url, policy):
    prompts = prompts_of(policy, "ids")
    sampling = replace(SAMPLING, temperature=0.5)
    engine = engine_of(vllm_url, "tiny", prompts[0], sampling)
    drawn = engine.draw(prompts, 4, sampling)
    assert all(all(draws.completion_token_ids) for draws in drawn)
    assert not any(any(draws.logprobs) for draws in drawn)


@pytest.mark.vllm
def test_vllm_refuses_what_it_cannot_answer_in_its_own_words(vllm_url, policy):
    prompts = prompts_of(policy, "ids")
    with pytest.raises(RemoteError, match=r"404 .*does not exist"):
        engine_of(vllm_url, "another", prompts[0]).describe()
    with pytest.raises(RemoteError, match=r"400 .*maximum (context|model) length"):
        engine_of(vllm_url, "tiny", prompts[0]).draw([Prompt("long", "", [7] * 70)], 2, SAMPLING)


@pytest.fixture(scope="module")
def transformers_url(policy) -> Iterator[str]:
    for package in ("fastapi", "uvicorn", "openai", "requests", "typer"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"transformers serve needs {package}: pip install 'transformers[serving]'")
    with serving(sys.executable, "-m", "transformers.cli.transformers", "serve") as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "chat"])
def test_transformers_serve_answers_one_choice_and_groups_are_whole(transformers_url, policy, kind):
    generation = policy / "generation_config.json"
    settings = json.loads(generation.read_text())
    changed = {**settings, "top_k": 0, "repetition_penalty": 1.0}
    generation.write_text(json.dumps(changed))
    prompts = prompts_of(policy, kind)
    try:
        engine = engine_of(transformers_url, str(policy), prompts[0])
        drawn = engine.draw(prompts, 5, SAMPLING)
    finally:
        generation.write_text(json.dumps(settings))
    assert [len(draws.completions) for draws in drawn] == [5] * len(prompts)
    assert all(len(set(draws.completions)) > 1 for draws in drawn)
    assert not any(any(draws.completion_token_ids) for draws in drawn)
    assert engine.describe()["token_ids"] is False


@pytest.mark.slow
def test_a_greedy_transformers_serve_is_caught(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("greedy")
    model = AutoModelForCausalLM.from_pretrained(policy)
    model.generation_config = type(model.generation_config)(eos_token_id=END, pad_token_id=PAD)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    with serving(sys.executable, "-m", "transformers.cli.transformers", "serve") as url:
        prompts = prompts_of(policy, "text")
        with pytest.raises(RemoteError, match="equal completions throughout: the server is greedy"):
            engine_of(url, str(folder), prompts[0]).draw(prompts, 3, SAMPLING)
