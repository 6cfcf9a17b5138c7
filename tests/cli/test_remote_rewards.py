"""Served rewards and a judge by flags: what is asked, what is stored, what is refused before anything is drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.servers import Server, chat, longer, prefers_the_first, serve


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonpareil.remote.FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def goods(request: dict[str, Any]) -> dict[str, Any]:
    return {"scores": [float(text.split().count("good")) for text in request["completions"]]}


def judged(files: Path, server: Server, **changes: Any) -> dict[str, Any]:
    (files / "judge.txt").write_text("{prompt}|{a}|{b}")
    return {
        "reward_funcs": None,
        "judge_model": "org/judge",
        "judge_base_url": f"{server.url}/v1",
        "judge_template": files / "judge.txt",
        "judge_cache": files / "judge.jsonl",
        **changes,
    }


def test_sample_with_a_judge_then_curve(nonpareil, files):
    with serve(longer) as server:
        flags = judged(files, server, judge_chat_template_kwargs='{"enable_thinking":false}')
        status, out, err = nonpareil("sample", "--json", **flags)
        assert status == 0, err
        assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        figures = json.loads(out.splitlines()[-1])
        assert "at most 144 times, 12 times per prompt" in err
        calls = len(server.requests)
        assert calls == figures["judge"]["calls"] <= 144
        assert figures["judge"]["pairs"] == 72
        # Again into another folder: the same draws, all of them in the cache.
        status, out, _ = nonpareil("sample", "--json", **flags, output_dir=files / "again")
        assert status == 0
        assert len(server.requests) == calls
    status, out, err = nonpareil("curve", "--groups", files / "out", "--json")
    assert status == 0, err
    curve = json.loads(out.splitlines()[-1])
    assert 0.5 < curve["points"][-1]["reward"]["estimate"] <= 1
    assert curve["points"][0]["reward"]["estimate"] == pytest.approx(
        0.5
    )  # a share won is one half on average
    stored = (files / "out" / "manifest.json").read_text()
    assert "127.0.0.1" not in stored
    assert json.loads(stored)["rewards"]["rewards"][0]["model"] == "org/judge"


def test_sample_with_a_served_reward_that_moves(nonpareil, files):
    for drawn in (3, 0):
        with serve(goods) as server:
            status, out, err = nonpareil(
                "sample", "--json", reward_funcs=None, reward_endpoints=f"json+{server.url}/score#goods"
            )
            assert status == 0, err
            figures = json.loads(out.splitlines()[-1])
            # Another port is no other reward: nothing is scored again but the greeting.
            assert figures["shards_scored"] == drawn
            assert len(server.requests) == 1 + drawn
    assert "127.0.0.1" not in (files / "out" / "manifest.json").read_text()


def test_a_model_card_and_report_hold_names_only(nonpareil, files):
    with serve(goods) as server:
        endpoint = f"json+{server.url}/score#goods"
        status, _, err = nonpareil(
            "distill",
            reward_funcs=None,
            reward_endpoints=endpoint,
            unseen_reward=f"json+{server.url}/score#other",
            per_device_train_batch_size=2,
            max_steps=1,
        )
        assert status == 0, err
        texts = [p.read_text() for p in (files / "out").rglob("*") if p.suffix in (".md", ".json", ".html")]
        assert len(texts) > 3
        assert not any(str(server.port) in text and "127.0.0.1" in text for text in texts)
    assert "| reward | `goods` |" in (files / "out" / "README.md").read_text()


def test_a_report_holds_names_only_wherever_an_endpoint_is_named(nonpareil, files):
    with serve(goods) as server:
        status, _, err = nonpareil(
            "evaluate",
            reward_funcs=f"json+{server.url}/score#goods",
            reward_model_name_or_path=f"json+{server.url}/score#others",
        )
    assert status == 0, err
    texts = [p.read_text() for p in (files / "out").rglob("*") if p.suffix in (".json", ".html")]
    assert len(texts) > 3
    assert not any("127.0.0.1" in text for text in texts)
    assert any("goods" in text for text in texts)


def test_training_with_a_judge(nonpareil, files):
    with serve(longer) as server:
        status, _, err = nonpareil("distill", **judged(files, server), evaluate_after="false", max_steps=1)
        assert status == 0, err
        # J-BOND: the policy's draw and the anchor's two are one group of 3, in 6 calls where all differ.
        assert 0 < len(server.requests) <= 4 * 6
    assert "judge org/judge" in (files / "out" / "README.md").read_text()


def test_a_judge_is_refused_where_groups_are_compared(nonpareil, files):
    with serve(prefers_the_first) as server:
        flags = judged(files, server)
        status, _, err = nonpareil("evaluate", **flags)
        assert status == 2
        assert "judge_model='org/judge' cannot be: evaluate compares the rewards of two policies" in err
        assert "docs/endpoints-rewards.md" in err
        status, _, err = nonpareil("distill", **flags)
        assert status == 2
        assert "evaluate_after=false" in err
        status, _, err = nonpareil(
            "distill", **flags, evaluate_after="false", eval_strategy="steps", eval_steps=1
        )
        assert status == 2
        assert "eval_strategy=no" in err
        (files / "compare.yaml").write_text(
            f"model_name_or_path: {files}/policy\ndataset_name: {files}/train.jsonl\njudge_model: m\n"
            f"judge_base_url: {server.url}\nmethods: {{jbond: {{}}}}\nbudget: {{completions: 100}}\n"
        )
        status, _, err = nonpareil("compare", "--config", files / "compare.yaml")
        assert status == 2
        assert "compare evaluates every policy" in err
        assert server.requests == []
    assert not (files / "out").exists()


def test_fresh_draws_are_not_compared_with_groups_judged_apart(nonpareil, files):
    with serve(longer) as server:
        flags = judged(files, server)
        assert nonpareil("sample", **flags, output_dir=files / "groups")[0] == 0
        trained = {
            "groups": files / "groups",
            "dataset_name": None,
            "evaluate_after": "false",
            "max_steps": 1,
        }
        status, _, err = nonpareil("distill", **flags, **trained, method="vbon")
        assert status == 2
        assert "judged apart" in err
        # A method that trains on the stored completions alone compares nothing across groups.
        calls = len(server.requests)
        status, _, err = nonpareil("distill", **flags, **trained, method="sft_bon", n=4)
        assert status == 0, err
        assert len(server.requests) == calls


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"judge_max_calls": 12}, "judge_max_calls=12 is not read without judge_model"),
        ({"judge_cache": "x.jsonl"}, "judge_cache='x.jsonl' is not read without judge_model"),
        ({"judge_model": "m"}, "judge_model='m' has no server; give judge_base_url"),
        ({"reward_api_key_env": "KEY"}, "reward_api_key_env='KEY' is read by reward endpoints only"),
        ({"reward_timeout": -1}, "reward_timeout=-1.0 must be above 0"),
        (
            {"reward_endpoints": "json+http://h/#x", "reward_api_key_env": "NONPAREIL_UNSET"},
            "reward_api_key_env='NONPAREIL_UNSET': no such environment variable",
        ),
        ({"judge_model": "m", "judge_base_url": "nohost"}, "judge_base_url='nohost' must be an address"),
        (
            {"judge_model": "m", "judge_base_url": "http://h", "judge_api_key_env": "NONPAREIL_UNSET"},
            "judge_api_key_env='NONPAREIL_UNSET': no such environment variable",
        ),
        ({"reward_endpoints": "http://h/score"}, "must be json+http://host:port/path#name"),
        (
            {"judge_model": "m", "judge_base_url": "http://127.0.0.1:9/v1", "judge_template": "none.txt"},
            "judge_template='none.txt' cannot be read",
        ),
        (
            {"judge_model": "m", "judge_base_url": "http://127.0.0.1:9/v1", "judge_max_calls": 7},
            "judge_max_calls=7 is too few for 4 completions per prompt",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_drawing(nonpareil, files, flags, says):
    status, out, err = nonpareil("sample", **flags)
    assert status == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not (files / "out").exists()


def test_an_endpoint_that_is_not_there_is_told_before_drawing(nonpareil, files):
    with serve(goods) as server:
        pass
    status, _, err = nonpareil("sample", reward_endpoints=f"json+{server.url}/score#goods")
    assert status == 1
    assert "gave up after" in err
    assert not (files / "out").exists()


def test_unparseable_verdicts_are_counted(nonpareil, files):
    def of_one_prompt(request: dict[str, Any]) -> dict[str, Any]:
        is_great = request["messages"][0]["content"].startswith("the film was great|")
        return chat("I cannot say") if is_great else longer(request)

    with serve(of_one_prompt) as server:
        status, out, err = nonpareil("sample", "--json", **judged(files, server))
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["judge"]["unparseable"] > 0
    reasons = json.loads((files / "out" / "manifest.json").read_text())["counts"]
    assert "the judge's verdict could not be read" in json.dumps(reasons)
    assert "rewards of judge-judge are null: 4 times the judge's verdict could not be read" in err
