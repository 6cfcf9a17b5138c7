# ruff: noqa: E402
"""recipes/circle.sh: its client loses no answer and asks none twice, its table counts right, and all of it runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

for name in ("fastapi", "uvicorn", "prometheus_client", "openai"):
    pytest.importorskip(name, reason="the extra serve, and its tests' client")

from nonpareil.serving.upstream import HttpUpstream
from tests.serving.running import MODEL, Echo, loopback, served

RECIPES = Path(__file__).parents[1] / "recipes"


def last_digit(completions, **columns):
    return [float(text[-1]) for text in completions]


@pytest.fixture
def circle(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import circle_client
    import circle_table

    return circle_client, circle_table


def test_the_client_asks_each_prompt_once_and_goes_on_behind_the_last_whole_line(
    circle, tmp_path, monkeypatch
):
    client, _ = circle
    prompts = [f"film {i}" for i in range(5)]
    pd.DataFrame({"prompt": prompts}).to_parquet(tmp_path / "prompts.parquet")
    echo = Echo()
    with (
        loopback(echo.app()) as upstream,
        served(HttpUpstream(f"{upstream}/v1", model=MODEL), last_digit) as server,
    ):
        words = [
            "--prompts",
            tmp_path / "prompts.parquet",
            "--output_dir",
            tmp_path,
            "--block",
            2,
            "--seed",
            7,
        ]
        words += ["--ask", f"best={server.url}/v1,4", "--ask", f"one={server.url}/v1,1"]
        monkeypatch.setattr(sys, "argv", ["client", *map(str, words)])
        client.main()
        whole = {name: client.read_lines(tmp_path / f"{name}.jsonl") for name in ("best", "one")}
        assert [body["n"] for body in echo.bodies] == [4, 4, 1, 1, 4, 4, 1, 1, 4, 1]
        assert [len({line["place"] for line in lines}) for lines in whole.values()] == [5, 5]
        for line in whole["best"]:
            assert line["prompt"] == prompts[line["place"]]
            assert (line["text"], line["reward"], line["tokens"]) == (" answer 3", 3.0, 12)
            assert line["seconds"] > 0

        path = tmp_path / "best.jsonl"
        path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of a line
        client.main()
        assert len(echo.bodies) == 11
        assert {line["place"] for line in client.read_lines(path)} == set(range(5))

        monkeypatch.setattr(
            sys, "argv", ["client", *map(str, words[:4]), "--ask", f"more={server.url}/v1,65"]
        )
        with pytest.raises(SystemExit, match=r"400.*best_of"):
            client.main()


def test_a_served_answer_is_held_against_the_samples_of_its_own_prompt(circle):
    _, table = circle
    answers = [
        {"prompt": "a", "reward": 1.0, "tokens": 8, "seconds": 1.0},
        {"prompt": "b", "reward": 1.0, "tokens": 4, "seconds": 3.0},
    ]
    base = {"a": [0.0, 2.0, 1.0, float("nan")], "b": [0.0, 0.0, 0.0, 0.0]}
    way, win, reward, tokens, median, late = table.row("best", answers, base, 1.0)
    assert (way, reward, tokens) == ("base, best of 8", "1.000", "6.0")
    assert win.startswith("0.750 [")  # (1/2 + 1) / 2
    assert (median, late) == ("2.00 s (2.00)", "2.90 s (2.90)")


@pytest.mark.slow
def test_the_whole_circle_runs_and_goes_on(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", str(RECIPES / "circle.sh"), str(tmp_path / "out")]
    for _ in range(2):  # the second time nothing is left but to show it
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": path, "SHORT": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (base, one sample|base, best of 8|distilled, one sample) \|", done.stdout, re.M)
    assert len(rows) == 3
    answers = [json.loads(line) for line in (tmp_path / "out/served-answers/best.jsonl").open()]
    assert len({one["place"] for one in answers}) == len(answers) == 24
    assert "best-of-8 is served" not in done.stdout
