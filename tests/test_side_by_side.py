"""recipes/side_by_side.py: runs of a comparison at once leave a folder that `nonpareil compare` goes on from."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nonpareil.commands.compare.run import run
from tests.tiny import make_model, make_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROMPTS = ("the film was", "a good film", "not bad", "a very", "the film", "bad", "good", "a")


STOPPED = "stopped; the same command goes on from what is saved"


def running_on(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in words:
            found.append(words)
    return found


def comparison(folder: Path) -> Path:
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for name, texts in (("train", PROMPTS), ("test", ("that film was", "so good"))):
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(rows)
    (folder / "reward.py").write_text(
        "def short(completions, **columns):\n    return [float(-len(text)) for text in completions]\n"
    )
    online = {"num_generations": 4, "per_device_train_batch_size": 4}
    spec = {
        **{"output_dir": str(folder / "out"), "model_name_or_path": str(folder / "model")},
        **{"dataset_name": f"{folder}/train.jsonl", "eval_dataset_name": f"{folder}/test.jsonl"},
        **{"max_eval_prompts": 2, "reward_funcs": [f"{folder}/reward.py:short"], "max_completion_length": 6},
        **{"n": [2], "seeds": [0], "budget": {"completions": 32}, "checkpoints": 0},
        "groups": {"num_generations": 4, "max_prompts": 8, "seed": 1},
        "evaluation": {"num_generations": 2, "num_reference_samples": 4},
        "training": {"use_cpu": True, "bf16": False, "report_to": "none", "log_completions": False},
        "methods": {
            "rloo": online,
            "regression": {"n": 2, "stored": True, "per_device_train_batch_size": 4, "max_steps": 2},
            "rloo_again": {"method": "rloo", **online},
        },
    }
    (folder / "comparison.yaml").write_text(yaml.safe_dump(spec))
    return folder / "comparison.yaml"


def side_by_side(file: Path) -> subprocess.Popen:
    script = [sys.executable, str(ROOT / "recipes" / "side_by_side.py"), str(file), "--jobs", "2"]
    return subprocess.Popen(
        script,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def lines_of(process: subprocess.Popen) -> Iterator[str]:
    assert process.stdout is not None
    return (line.strip() for line in process.stdout)


def test_runs_at_once_are_those_of_the_comparison(tmp_path: Path) -> None:
    file = comparison(tmp_path)
    with side_by_side(file) as stopped:
        assert any("out rloo seed 0: begun" in line for line in lines_of(stopped))
        stopped.send_signal(signal.SIGINT)
        _, errors = stopped.communicate()
    assert (stopped.returncode, errors.splitlines()[-1]) == (1, STOPPED)
    assert not running_on(tmp_path), "nothing outlives it"

    with side_by_side(file) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    done = sorted(line for line in output.splitlines() if line.endswith(": done"))
    assert done == ["out rloo seed 0: done", "out rloo_again seed 0: done"], "regression was done before"
    table = (tmp_path / "out" / "reports" / "comparison.md").read_text()
    assert all(f"| {name} |" in table for name in ("rloo", "regression", "rloo_again"))
    assert not list(tmp_path.glob("out-*/")), "the copies are gone"

    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/*/done.json")}
    assert len(trained) == 3
    ended = run(file)
    assert ended["failures"] == []
    assert {path: path.stat().st_mtime_ns for path in trained} == trained, "nothing is trained again"


def test_a_run_that_fails_is_named_and_the_rest_is_reported(tmp_path: Path) -> None:
    file = comparison(tmp_path)
    spec = yaml.safe_load(file.read_text())
    spec["methods"] = {
        "regression": spec["methods"]["regression"],
        "theirs": {"command": ["{python}", "-c", "raise SystemExit('no such trainer')"]},
    }
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    with side_by_side(file) as process:
        output, errors = process.communicate()
    assert process.returncode == 1
    assert f"out theirs seed 0: not done, see {tmp_path}/out-theirs-0-run.log" in output
    assert errors.splitlines()[-1] == "not done: out theirs seed 0; the same command does them"
    table = (tmp_path / "out" / "reports" / "comparison.md").read_text()
    assert "| regression |" in table
    assert "theirs" not in table
