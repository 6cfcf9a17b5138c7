"""ZeRO-3 on real processes (DeepSpeed, gloo) trains as one process does, and its checkpoints are the same."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nonpareil.models.anchors import ANCHOR_FILE
from tests.tiny import make_model, make_tokenizer
from tests.training.conftest import metrics
from tests.training.test_processes import (
    JOBS,
    ROOT,
    SAVED,
    SGD,
    SPLIT,
    ZERO,
    assert_near,
    command,
    launch,
    train,
)

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

__all__ = ["command"]  # the fixture

ADAMW = {**JOBS["adamw"], "weight_decay": 0.1}
MOMENTUM = {**SAVED, "optim_args": "momentum=0.9"}
TRAINED: dict[str, dict[str, Any]] = {
    **JOBS,
    "adamw": ADAMW,
    "momentum": MOMENTUM,
    # DeepSpeed clips at 1.0 where nothing is said.
    "unclipped": {**SGD, "learning_rate": 1e-3, "max_grad_norm": 0},
    "frozen": {**SGD, "frozen_parameters": ["embed_tokens"]},
    # One process has more chunks, and so calls of the output head, than the other.
    "chunks": {**SGD, "chunk": 60, "max_tokens_per_batch": 20},
    "chunks_accumulated": {**SGD, "chunk": 60, "gradient_accumulation_steps": 2, "max_tokens_per_batch": 20},
    "checkpointed": {**SGD, "chunk": 60, "gradient_checkpointing": True},
    "bf16": {**SGD, "bf16": True},
    **{kind: {**SGD, "kind": kind} for kind in ("tied", "gpt2", "linear_and_full_attention")},
}
ON_FOUR = ("jbond", "adamw", "chunks")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same jobs on one process without DeepSpeed, and with it on two and on four, some idle at times."""
    folder = tmp_path_factory.mktemp("zero")
    return {
        "one": train(folder / "one", 1, TRAINED),
        "plain two": train(folder / "plain", 2, {"bf16": TRAINED["bf16"]}),
        "two": train(folder / "two", 2, {**TRAINED, "failing": {**TRAINED["failing"], **SPLIT}}, **ZERO),
        "four": train(folder / "four", 4, {job: TRAINED[job] for job in ON_FOUR}, **ZERO),
    }


CASES = [*(("two", job) for job in TRAINED), *(("four", job) for job in ON_FOUR)]


@pytest.mark.parametrize(("kind", "job"), CASES)
def test_zero3_trains_as_one_process_does(runs: dict[str, Path], kind: str, job: str) -> None:
    # In bfloat16 it matters which rows share a pass, as it does without DeepSpeed.
    alike = runs["plain two" if job == "bf16" else "one"] / job
    ours, theirs = metrics(runs[kind] / job), metrics(alike)
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in other.items():
            assert mine[name] == pytest.approx(value, rel=1e-4, abs=2e-5), (name, mine["step"])
    model = make_model(TRAINED[job]["kind"]) if "kind" in TRAINED[job] else None
    assert_near(runs[kind] / job / "final", alike / "final", atol=1e-6, model=model)


@pytest.mark.parametrize(("kind", "processes"), [("two", 2), ("four", 4)])
def test_policy_anchor_and_moments_are_split(runs: dict[str, Path], kind: str, processes: int) -> None:
    (alone,) = json.loads((runs["one"] / "adamw" / "held.json").read_text())
    held = json.loads((runs[kind] / "adamw" / "held.json").read_text())
    assert [h["processes"] for h in held] == [processes] * processes
    for what in ("policy", "anchor", "optimizer"):
        assert alone[what] > 0
        for here in held:  # padded, so that all hold as much
            assert alone[what] / processes <= here[what] <= 1.01 * alone[what] / processes


@pytest.mark.parametrize("job", ["adamw", "momentum"])
@pytest.mark.parametrize(
    ("saved_by", "resumed_on", "environment"),
    [("two", 2, ZERO), ("two", 4, ZERO), ("two", 1, {}), ("one", 2, ZERO)],
)
def test_checkpoints_resume_on_any_number_of_processes_with_and_without_deepspeed(
    runs: dict[str, Path],
    saved_by: str,
    resumed_on: int,
    environment: dict[str, str],
    job: str,
    tmp_path: Path,
) -> None:
    checkpoint = runs[saved_by] / job / "checkpoint-2"
    assert (checkpoint / ANCHOR_FILE).is_file()
    again = {**TRAINED[job], "resume": str(checkpoint), "save_strategy": "no"}
    train(tmp_path, resumed_on, {job: again}, **environment)
    assert_near(tmp_path / job / "final", runs["one"] / job / "final", atol=1e-6)
    lines = metrics(tmp_path / job)
    assert [line["step"] for line in lines] == [3, 4]
    for mine, alone in zip(lines, metrics(runs["one"] / job)[2:], strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert mine[name] == pytest.approx(alone[name], rel=1e-4)


@pytest.mark.parametrize("name", ["model.safetensors", ANCHOR_FILE])
def test_a_checkpoint_holds_whole_weights(runs: dict[str, Path], name: str) -> None:
    ours, alone = (load_file(runs[kind] / "adamw" / "checkpoint-4" / name) for kind in ("two", "one"))
    assert ours.keys() == alone.keys()
    for weight, value in alone.items():
        torch.testing.assert_close(ours[weight], value, atol=1e-6, rtol=1e-4)


def test_accelerate_launch_distils_by_the_recipe(command: list[str], tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes" / "launch" / "zero3.yaml")
    starter = ["-m", "accelerate.commands.launch", "--config_file", recipe, "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, *starter, *command, f"--output_dir={tmp_path / 'out'}", "--optim=sgd", "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{") and "output_dir" in line]
    assert json.loads(line)["steps"] == 3
    assert (tmp_path / "out" / "evaluation" / "report.html").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "ZeRO with an untested optimizer" in done.stderr  # DeepSpeed on SGD; not on stdout


def test_a_capped_output_head_is_refused(command: list[str], tmp_path: Path) -> None:
    make_model("gemma2_capped").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    changed = [f"--model_name_or_path={tmp_path / 'model'}", f"--output_dir={tmp_path / 'out'}"]
    done = launch(2, [*command, *changed], **ZERO)
    assert done.returncode != 0
    assert "behind the output head" in done.stderr


@pytest.mark.parametrize(
    ("flag", "named"),
    [("--optim=adafactor", "adamw_torch"), ("--fp16=true", "bf16=true"), ("--use_peft=true", "use_peft")],
)
def test_what_would_be_another_training_is_refused_at_once(
    command: list[str], tmp_path: Path, flag: str, named: str
) -> None:
    done = launch(2, [*command, flag, f"--output_dir={tmp_path / 'out'}"], **ZERO)
    assert done.returncode != 0
    assert named in done.stderr
    assert not (tmp_path / "out").exists()
