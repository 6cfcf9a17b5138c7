"""`nonpareil sample --engine openai` against a server on loopback, as a user runs it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nonpareil import remote
from nonpareil.commands.policies.served import ServedPolicy
from nonpareil.errors import DataError
from nonpareil.options.sample import SampleOptions
from nonpareil.records import Prompt
from nonpareil.rollouts import read_groups
from tests.engines.openai_server import MODEL, OpenAIServer
from tests.tiny import make_tokenizer

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., OpenAIServer]]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    servers = []

    def start(**habits: Any) -> OpenAIServer:
        servers.append(OpenAIServer(**habits))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def sample(nonpareil, server: OpenAIServer | None, **changes: Any) -> tuple[int, str, str]:
    url = server and server.url
    settings = {"engine": "openai", "base_url": url, "model_name_or_path": MODEL, "max_retries": 1}
    return nonpareil("sample", **{**settings, **changes})


def test_groups_from_a_server_and_their_curve(nonpareil, serve, files, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(owner="someone", most=1)
    code, _, err = sample(nonpareil, server, api_key_env="MY_KEY", inspect="true")
    assert code == 0, err
    groups = read_groups(files / "out")
    assert [len(group) for group in groups] == [4] * 12
    assert all(group.rewards and None not in group.rewards for group in groups)
    assert server.keys == {f"Bearer {KEY}"}

    # Neither the key nor the address is kept: the first is secret, the second may be.
    stored = b"".join(path.read_bytes() for path in (files / "out").rglob("*") if path.is_file())
    assert b"very-secret" not in stored
    assert b"127.0.0.1" not in stored
    manifest = json.loads((files / "out" / "manifest.json").read_text())
    assert manifest["draw"]["model"] == {"path": MODEL}
    assert manifest["draw"]["engine"] == {
        "engine": "openai",
        "model": MODEL,
        "server": "someone",
        "endpoint": "completions",
        "token_ids": False,
        "logprobs": False,
    }
    code, out, err = nonpareil("curve", "--groups", files / "out", "--json")
    assert code == 0, err
    curve = json.loads(out)
    assert (curve["num_completions"], curve["mean_length"]) == (4, None), "no ids, so no lengths"
    texts = sum(len(set(group.completions)) for group in groups) / len(groups)
    assert curve["mean_unique_completions"] == pytest.approx(texts)
    assert texts > 1


def test_a_run_that_a_server_ended_goes_on_at_another_address(nonpareil, serve, files):
    folder = files / "tokenizer"
    make_tokenizer().save_pretrained(folder)
    dying = serve(refuse=lambda number: 500 if number > 6 else None)
    code, _, err = sample(nonpareil, dying, tokenizer_name_or_path=folder)
    assert code == 1
    assert f"{dying.url}/completions: gave up after 2 tries; the last: 500" in err
    shard = files / "out" / "data" / "shard-00000.parquet"
    before = (shard.read_bytes(), shard.stat().st_mtime_ns)
    assert len(list(shard.parent.iterdir())) == 1

    code, _, err = sample(nonpareil, serve(), tokenizer_name_or_path=folder)
    assert code == 0, err
    assert "2 shards drawn now" in err
    resumed = read_groups(files / "out")
    code, _, err = sample(nonpareil, serve(), tokenizer_name_or_path=folder, output_dir=files / "whole")
    assert code == 0, err
    assert read_groups(files / "whole") == resumed
    assert all(all(group.completion_token_ids) and all(group.logprobs) for group in resumed)
    assert before[1] != shard.stat().st_mtime_ns, "scored since"

    # Another kind of server is another policy: its groups are not mixed in.
    shard.unlink()
    code, _, err = sample(nonpareil, serve(owner="another"), tokenizer_name_or_path=folder)
    assert code == 2
    assert "engine.server: 'vllm' there, 'another' now" in err


@pytest.mark.parametrize("method", ["vbon", "bonbon"])
def test_distill_takes_the_rewards_of_served_groups_and_no_more(nonpareil, serve, files, method):
    code, _, err = sample(nonpareil, serve(owner="someone"), num_generations=8)
    assert code == 0, err
    trained = {"groups": files / "out", "method": method, "output_dir": files / "model", "max_steps": 1}
    code, _, err = nonpareil("distill", dataset_name=None, **trained)
    if method == "vbon":
        assert code == 0, err
    else:
        assert code == 1
        assert "was drawn from a server" in err
        assert "BoNBoN trains on the completions" in err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "transformers"}, "base_url='http://127.0.0.1:9' is not read with engine=transformers"),
        ({"base_url": None}, "base_url is missing; engine=openai draws from a server"),
        ({"base_url": "here"}, "base_url='here' must be an address"),
        ({"dtype": "float32"}, "dtype='float32' is not read with engine=openai"),
        ({"max_tokens_per_batch": 9}, "max_tokens_per_batch=9 is not read with engine=openai"),
        ({"api_key_env": "NONPAREIL_UNSET"}, "api_key_env='NONPAREIL_UNSET': no such environment variable"),
        ({"max_concurrency": 0}, "max_concurrency=0 must be at least 1"),
        ({"request_timeout": -1}, "request_timeout=-1.0 must be above 0"),
        ({"request_timeout": "inf"}, "request_timeout='inf' must be a finite number above 0"),
        ({"temperature": 0}, "temperature=0.0 must be above 0"),
        ({"tokenizer_name_or_path": "/no/such/folder"}, "/no/such/folder"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_request(nonpareil, files, changes, says):
    settings = {"engine": "openai", "base_url": "http://127.0.0.1:9", "model_name_or_path": MODEL}
    code, out, err = nonpareil("sample", **{**settings, **changes})
    assert (code, out) in ((1, ""), (2, ""))
    assert says in err
    assert "Traceback" not in err
    assert not (files / "out").exists()


def test_a_prompt_without_a_token_is_refused(files):
    options = SampleOptions(
        engine="openai",
        base_url="http://127.0.0.1:9",
        model_name_or_path=MODEL,
        tokenizer_name_or_path=str(files / "policy"),
    )
    with pytest.raises(DataError, match="prompt p is empty"):
        ServedPolicy(options).check([Prompt("p", "", [])], options.sampling())


def test_a_server_alone_does_not_mean_the_demo(nonpareil, capsys):
    code, _, err = nonpareil("sample", "--engine", "openai", "--base_url", "http://127.0.0.1:9")
    assert code == 2
    assert "model_name_or_path is missing" in err


def test_a_conversation_that_the_assistant_left_open(nonpareil, serve, files):
    talk = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was"}]
    prompts = Path(files / "talk.jsonl")
    prompts.write_text(json.dumps({"prompt": talk}) + "\n")
    server = serve()
    code, _, err = sample(nonpareil, server, dataset_name=prompts)
    assert code == 1
    assert "the assistant spoke last" in err
    assert not server.posts
