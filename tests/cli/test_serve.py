# ruff: noqa: E402
"""`nonpareil serve` as a user starts and stops it: refusals of one line, groups kept, a graceful end."""

import json
import os
import shutil
import signal
import socket
import threading
import time

import pytest

for name in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(name, reason="the extra serve")

import httpx
from safetensors.torch import load_file, save_file

from nonpareil.cli.main import main
from nonpareil.rollouts.reading import read_groups
from tests.serving.nemesis import MODEL, Nemesis


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def words(files, **settings):
    settings = {
        "model_name_or_path": files / "policy",
        "reward_funcs": f"{files}/rewards.py:good",
        **settings,
    }
    settings |= {"port": settings.get("port", 0)}
    return ["serve", *(w for k, v in settings.items() if v is not None for w in (f"--{k}", str(v)))]


def serving(files, capsys, bodies, **settings):
    """The answers to completion requests, by their keys; the command's result, and what it said."""
    port, found = free_port(), {}

    def ask():
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        try:
            for key, (page, body) in bodies.items():
                found[key] = httpx.post(f"{url}/v1/{page}", json=body, timeout=60).json()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask)
    client.start()
    status = main([*words(files, port=port, **settings), "--json"])
    client.join()
    out, err = capsys.readouterr()
    assert status == 0, err
    return found, json.loads(out.splitlines()[-1]), err


def test_what_is_served_is_kept_and_tells_the_next_server_when_to_stop(files, capsys):
    bodies = {
        i: ("completions", {"prompt": f"the film was {'good' if i else 'bad'}", "seed": i, "max_tokens": 4})
        for i in range(3)
    } | {"chat": ("chat/completions", {"messages": []})}
    found, result, err = serving(files, capsys, bodies, best_of=4, groups=files / "kept", groups_flush=2)
    assert f"policy, best_of_n of 4 answers by good, kept in {files / 'kept'}" in err
    assert "3 requests were answered, 1 were told an error" in err
    assert "no chat template" in found["chat"]["error"]["message"]
    assert (result["answered"], result["stored"], result["not_stored"]) == (3, 3, {})
    (folder,) = result["groups"]
    groups = read_groups(folder)
    assert len(groups) == 3
    for i, group in enumerate(groups):
        assert group.rewards == pytest.approx(found[i]["nonpareil"]["scores"])
        (chosen,) = found[i]["nonpareil"]["chosen"]
        assert group.completions[chosen] == found[i]["choices"][0]["text"]
        assert sum(map(len, group.completion_token_ids)) == found[i]["usage"]["completion_tokens"]
    assert main(["curve", "--groups", folder]) == 0
    capsys.readouterr()

    by = {"calibration": folder, "max_draws": 8, "best_of": 2}
    (files / "short.py").write_text("def short(completions, **rest):\n    return [0.0] * len(completions)\n")
    shutil.copytree(files / "policy", files / "other")
    weights = load_file(files / "other" / "model.safetensors")
    save_file(
        {k: v + 0.01 for k, v in weights.items()}, files / "other" / "model.safetensors", {"format": "pt"}
    )
    for settings, says in [
        ({"max_completion_length": 5}, "was drawn with max_completion_length=4, and here it is 5"),
        ({"stop_at_quantile": 0.99}, "beyond what the calibration's rewards can tell, 0.916667"),
        ({"reward_funcs": f"{files}/short.py:short"}, "was scored by other rewards: names"),
        ({"model_name_or_path": files / "other"}, "which are other weights; give groups of this policy"),
    ]:
        settings = {**by, "stop_at_quantile": 0.5, "max_completion_length": 4, **settings}
        assert main(words(files, **settings)) == 2, settings
        assert says in capsys.readouterr().err
    bodies = {"it": ("completions", {"prompt": "the film was bad", "seed": 0})}
    found, _, err = serving(files, capsys, bodies, **by, stop_at_quantile=0.3, max_completion_length=4)
    assert "of 2 (up to 8, until quantile 0.3) answers" in err
    block = found["it"]["nonpareil"]
    assert block["draws"] == len(block["quantiles"])
    assert (block["stopped"] == "quantile") == (max(block["quantiles"]) >= 0.3)


def test_a_model_alone_is_served_as_it_is(files, capsys):
    bodies = {"it": ("completions", {"prompt": "the film was", "temperature": 0, "max_tokens": 3})}
    found, result, err = serving(files, capsys, bodies, reward_funcs=None)
    assert "policy, one answer a request, as it is drawn (no reward is named to choose by)" in err
    assert result["answered"] == 1
    assert found["it"]["usage"]["completion_tokens"] <= 3


def test_what_cannot_be_served_is_refused_in_one_line(files, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (files / "columns.py").write_text(
        "def needs(completions, answer, **rest):\n    return [1.0] * len(completions)\n"
    )
    (files / "full").mkdir()
    (files / "full" / "mine.txt").write_text("mine")
    with socket.socket() as taken, Nemesis() as server, Nemesis(owner="nonpareil") as ours:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = [
            ({"port": port}, f"port={port}: Address already in use"),
            ({"client_key_env": "NO_SUCH_KEY"}, "client_key_env='NO_SUCH_KEY': no such environment variable"),
            ({"best_of": 100}, "best_of=100 is more than max_best_of=64"),
            ({"max_draws": 9}, "max_draws=9 is read with stop_at_reward"),
            ({"stop_at_reward": 0}, "stop_at_reward=0.0 is read with max_draws"),
            ({"max_draws": 65, "stop_at_reward": 0}, "at most max_best_of=64"),
            ({"max_draws": 9, "stop_at_reward": 0, "rule": "soft:temperature=1"}, "a fixed number"),
            ({"max_draws": 9, "stop_at_reward": 0, "judge_model": "j"}, "a judge compares"),
            ({"rule": "best"}, "rule='best' is no rule"),
            ({"rule": "best_of_n:n=9"}, "9"),
            ({"engine": "ray"}, "engine=ray draws stored groups"),
            ({"host": "no.such.host.invalid"}, "is no address of this machine"),
            ({"reward_funcs": None, "best_of": 2}, "no reward to choose among them by: give"),
            (
                {"reward_funcs": None, "groups": files / "new"},
                "read by a reward that chooses among answers only",
            ),
            ({"stop_at_quantile": 0.5, "max_draws": 9}, "give calibration, a folder of `nonpareil sample`"),
            ({"calibration": files / "full"}, "has no manifest"),
            ({"reward_funcs": f"{files}/columns.py:needs"}, "answer"),
            ({"groups": files / "full"}, "holds things that no server of ours stored"),
            ({"groups_flush": 3}, "groups_flush=3 is not read without groups"),
            ({"base_url": ours.url, "model_name_or_path": None}, "whose answers are chosen already"),
            ({"base_url": server.url, "model_name_or_path": "other"}, f"its list has: {MODEL}"),
        ]
        for settings, says in cases:
            assert main(words(files, **settings)) in (1, 2), settings
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nonpareil: ")]
            assert len(said) == 1, said
            assert says in said[0]
