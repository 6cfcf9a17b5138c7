# ruff: noqa: E402
"""recipes/circle.sh: its client loses no answer and asks none twice, its figures are right, and all of it runs."""

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
DOCS = RECIPES.parent / "docs"


def last_digit(completions, **columns):
    return [float(text[-1]) for text in completions]


@pytest.fixture
def circle(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import circle_client
    import circle_picture
    import circle_table

    return circle_client, circle_table, circle_picture


def test_the_client_asks_each_prompt_once_and_goes_on_behind_the_last_whole_line(
    circle, tmp_path, monkeypatch
):
    client, *_ = circle
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
        costs = client.read_lines(tmp_path / "best.cost.jsonl")
        assert [cost["answers"] for cost in costs] == [2, 2, 1]
        assert sum(cost["cpu_seconds"] for cost in costs) > 0  # of this process, in which the server runs
        seeds = [body["seed"] for body in echo.bodies]
        assert len(set(seeds)) == len(seeds)  # of each way and prompt, or all ways would be lucky together

        path = tmp_path / "best.jsonl"
        path.write_bytes(path.read_bytes()[:-9])  # a kill in the middle of a line
        client.main()
        assert len(echo.bodies) == 11
        assert echo.bodies[-1]["seed"] == seeds[8]  # of its fifth prompt, as before
        assert {line["place"] for line in client.read_lines(path)} == set(range(5))

        monkeypatch.setattr(
            sys, "argv", ["client", *map(str, words[:4]), "--ask", f"more={server.url}/v1,65"]
        )
        with pytest.raises(SystemExit, match=r"400.*best_of"):
            client.main()


def test_a_served_answer_is_held_against_the_samples_of_its_own_prompt(circle):
    _, table, _ = circle
    answers = [
        {"prompt": "a", "reward": 1.0, "tokens": 8, "seconds": 1.0},
        {"prompt": "b", "reward": 1.0, "tokens": 4, "seconds": 3.0},
    ]
    base = {"a": [0.0, 2.0, 1.0, float("nan")], "b": [0.0, 0.0, 0.0, 0.0]}
    costs = [{"answers": 1, "cpu_seconds": 2.0}, {"answers": 3, "cpu_seconds": 1.0}]
    found = table.way_figures(answers, base, costs)
    assert found["win_rate"] == 0.75  # (1/2 + 1) / 2
    assert 0 <= found["low"] < 0.75 < found["high"] <= 1
    assert (found["reward"], found["tokens"], found["median"], found["late"]) == (1.0, 6.0, 2.0, 2.9)
    assert found["cpu_seconds"] == 0.75
    assert table.way_figures(answers, base, [])["cpu_seconds"] is None


def run_of(name, win, seconds, trained):
    """A run's figures: best-of-8 takes twice the seconds of one sample."""
    way = {"answers": 4, "low": win - 0.1, "high": win + 0.1, "reward": 1.0, "tokens": 40.0}
    one = {**way, "win_rate": win, "cpu_seconds": seconds, "median": seconds, "late": 2 * seconds}
    best = {**one, "tokens": 320.0, "cpu_seconds": 2 * seconds, "median": 2 * seconds}
    evaluation = {
        "win_rate": win,
        "low": win - 0.1,
        "high": win + 0.1,
        "kl": 1.0,
        "kl_efficiency": 0.5,
        "worth": 3.0,
    }
    ways = {"base": one, "best": best, "distilled": one}
    return {
        **{"run": name, "served": 9, "training_cpu_seconds": trained, "evaluation": evaluation, "ways": ways}
    }


def test_one_seed_has_an_interval_over_prompts_and_several_their_spread(circle):
    _, table, _ = circle
    runs = [run_of("seed-0", 0.5, 1.0, 90.0), run_of("seed-1", 0.75, 3.0, None)]
    one, several = table.lines({"runs": runs[:1]}), table.lines({"runs": runs})
    assert (
        "| base, best of 8 | 0.500 [0.400, 0.600] | 1.000 | 320.0 | 2.00 (2.00) | 2.00 s (2.00) |" in one[3]
    )
    assert "training: 90 CPU seconds" in one[-1]
    assert "| base, best of 8 | 0.625 ± 0.177 |" in several[3]
    assert "| 4.00 ± 2.83 s (2.00 ± 0.00) |" in several[3]  # the ratio is within a run
    assert "training: not known CPU seconds" in several[-1]
    runs[1]["served"] = 8
    with pytest.raises(SystemExit, match="other numbers of requests"):
        table.lines({"runs": runs})


def test_a_bar_of_the_picture_is_the_interval_of_one_seed_and_the_range_of_several(circle):
    _, _, picture = circle
    runs = [run_of("seed-0", 0.5, 1.0, 90.0), run_of("seed-1", 0.75, 3.0, 90.0)]
    assert picture.point(runs[:1], "best") == (320.0, 0.5, 0.4, 0.6)
    assert picture.point(runs, "best") == (320.0, 0.625, 0.5, 0.75)


def test_the_docs_table_and_picture_are_of_the_figures_beside_them(circle):
    _, table, picture = circle
    figures = json.loads((DOCS / "circle.json").read_text(encoding="utf-8"))
    assert figures["runs"]
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    for line in table.lines(figures)[:5]:
        assert line in page
    figure = picture.circle_figure(figures)
    drawn = "\n".join(text.get_text() for text in figure.axes[0].texts)
    for name in table.WAYS:
        rate = sum(run["ways"][name]["win_rate"] for run in figures["runs"]) / len(figures["runs"])
        assert f": {rate:.2f}\n" in drawn
    assert (DOCS / "circle.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_whole_circle_runs_and_goes_on(tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", str(RECIPES / "circle.sh"), str(tmp_path / "out")]
    for seeds in ("0", "0 1", "0 1"):  # the second adds a seed, the third time nothing is left but to show it
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": path, "SHORT": "1", "SEEDS": seeds},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("seed 0: best-of-8 is served" in done.stdout) == (seeds == "0")
    assert "is served" not in done.stdout
    rows = re.findall(
        r"^\| (base, one sample|base, best of 8|distilled, one sample) \|.* ± ", done.stdout, re.M
    )
    assert len(rows) == 3
    for seed in (0, 1):
        path = tmp_path / f"out/seed-{seed}/served-answers/best.jsonl"
        answers = [json.loads(line) for line in path.open()]
        assert len({one["place"] for one in answers}) == len(answers) == 24
    assert (tmp_path / "out/circle.png").exists()
