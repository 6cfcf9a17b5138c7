"""recipes/side_by_side.py: runs of a comparison at once leave a folder that `nonpareil compare` goes on from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nonpareil.commands.compare.run import run
from tests.tiny import make_model, make_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROMPTS = ("the film was", "a good film", "not bad", "a very", "the film", "bad", "good", "a")


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


def test_runs_at_once_are_those_of_the_comparison(tmp_path: Path) -> None:
    file = comparison(tmp_path)
    script = [sys.executable, str(ROOT / "recipes" / "side_by_side.py"), str(file), "--jobs", "2"]
    done = subprocess.run(
        script, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["out rloo seed 0: done", "out rloo_again seed 0: done"]
    table = (tmp_path / "out" / "reports" / "comparison.md").read_text()
    assert all(f"| {name} |" in table for name in ("rloo", "regression", "rloo_again"))
    assert not list(tmp_path.glob("out-*/")), "the copies are gone"

    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/*/done.json")}
    assert len(trained) == 3
    ended = run(file)
    assert ended["failures"] == []
    assert {path: path.stat().st_mtime_ns for path in trained} == trained, "nothing is trained again"
