"""Several real processes (torchrun, gloo) train as one does: same draws, loss, weights and checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nonpareil.models.anchors import ANCHOR_FILE
from tests.tiny import favour, make_model, make_tokenizer
from tests.training.conftest import ending_model, metrics

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
SGD = {"optim": "sgd", "learning_rate": 0.02}
SAVED = {**SGD, "save_strategy": "steps", "save_steps": 2}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
JOBS: dict[str, dict[str, Any]] = {
    "jbond": SAVED,
    "adamw": {"learning_rate": 1e-3, "adam_epsilon": 1e-2, "save_strategy": "steps", "save_steps": 2},
    "bond": {**SGD, "method": "bond", "n": 2, "num_generations": 2, "num_reference_samples": 3},
    "regression": {**SGD, "method": "regression", "n": 2, "stored": True},
    "credited": {
        **SGD,
        "method": "value_distillation",
        "stored": True,
        "credited": True,
        "max_tokens_per_batch": 20,
    },
    "tilted": {
        **SGD,
        "method": "value_distillation",
        "stored": True,
        "credited": True,
        "tilted_start": True,
        "kind": "tied",
        "max_steps": 2,
    },
    "ppo": {
        **SGD,
        "method": "vbon",
        "n": 2,
        "num_iterations": 2,
        "num_generations": 2,
        "num_reference_samples": 2,
    },
    "accumulated": {**SGD, "gradient_accumulation_steps": 2, "max_steps": 2},
    "passes": {**SGD, "max_tokens_per_batch": 20},
    "shared rows": {**SGD, "method": "rloo", "num_generations": 4, "long": True, "max_steps": 2},
    "failing": {**SGD, "some_fail": True},
    "dropping": {**SGD, "method": "rloo", "num_generations": 3, "extreme": True},
}
SPLIT = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
"""Of what is one batch of 4 in a single process: 2 prompts of each of two processes, one after the other."""
SHARDED = ("jbond", "adamw", "bond", "regression", "credited", "passes", "failing", "dropping", "files")


def tied_model(folder: Path) -> str:
    """One whose head is its embeddings, and that ends by an id which its generation config alone names."""
    model = favour(make_model("tied"), 2, 1.0)
    model.generation_config.eos_token_id = [2, 8]
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def launch(processes: int, arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [sys.executable, *starter, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(folder: Path, processes: int, jobs: dict[str, dict[str, Any]], **environment: str) -> Path:
    """The jobs on so many processes; 4 prompts per step in all, and 2 in the epoch's last one."""
    folder.mkdir(exist_ok=True)
    size = {"per_device_train_batch_size": 4 // processes}
    (folder / "jobs.json").write_text(json.dumps({name: {**size, **job} for name, job in jobs.items()}))
    arguments = ["-m", "tests.training.processes", str(folder), str(folder / "jobs.json")]
    done = launch(processes, arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same jobs on one process, on two, on two that share the weights, and on four, some idle at times."""
    folder = tmp_path_factory.mktemp("processes")
    files = {"files": {**SAVED, "model": tied_model(folder / "model")}}
    sharded = {
        name: {**job, "shard_weights": True} for name, job in {**JOBS, **files}.items() if name in SHARDED
    }
    sharded["failing"] |= SPLIT
    lora = {"lora": {**SAVED, "use_peft": True, "lora_r": 4}}
    return {
        "one": train(folder / "one", 1, {**JOBS, **lora, **files}),
        "two": train(folder / "two", 2, {**JOBS, **lora, "failing": {**JOBS["failing"], **SPLIT}}),
        "sharded": train(folder / "sharded", 2, sharded),
        "four": train(folder / "four", 4, {"jbond": JOBS["jbond"]}),
        "four sharded": train(folder / "four_sharded", 4, {"jbond": sharded["jbond"]}),
    }


CASES = [
    *(("two", job) for job in (*JOBS, "lora")),
    *(("sharded", job) for job in SHARDED),
    ("four", "jbond"),
    ("four sharded", "jbond"),
]


@pytest.mark.parametrize(("kind", "job"), CASES)
def test_any_number_of_processes_trains_the_same(runs: dict[str, Path], kind: str, job: str) -> None:
    ours, one = metrics(runs[kind] / job), metrics(runs["one"] / job)
    assert len(ours) == len(one) > 0
    for mine, alone in zip(ours, one, strict=True):
        assert mine.keys() == alone.keys()
        for name, value in alone.items():
            expected = value if value is None else pytest.approx(value, rel=2e-3, abs=2e-4)  # None: no reward
            assert mine[name] == expected, (name, mine["step"])
    assert_near(runs[kind] / job / "final", runs["one"] / job / "final")


def assert_near(ours: Path, theirs: Path, atol: float = 2e-5, model: Any = None) -> None:
    (file,) = [path.name for path in ours.glob("*model.safetensors")]
    mine, alone = load_file(ours / file), load_file(theirs / file)
    assert mine.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(mine[name], value, atol=atol, rtol=1e-3)
    start = dict((model or ending_model()).named_parameters())
    assert any(name not in start or not torch.equal(mine[name], start[name]) for name in mine), (
        "nothing moved"
    )


@pytest.mark.parametrize(("kind", "processes"), [("two", 2), ("sharded", 2), ("four sharded", 4)])
def test_shards_are_shards(runs: dict[str, Path], kind: str, processes: int) -> None:
    job = "jbond" if kind == "four sharded" else "adamw"
    (alone,) = json.loads((runs["one"] / job / "held.json").read_text())
    held = json.loads((runs[kind] / job / "held.json").read_text())
    assert [h["processes"] for h in held] == [processes] * processes
    for what in ("policy", "anchor", "optimizer"):
        if kind == "two":
            assert all(h[what] == alone[what] for h in held)
        else:
            assert sum(h[what] for h in held) == alone[what]
            assert max(h[what] for h in held) <= 1.3 * alone[what] / processes


def test_a_path_is_read_shard_by_shard(runs: dict[str, Path]) -> None:
    held = json.loads((runs["sharded"] / "files" / "held.json").read_text())
    assert [h["read_in_shards"] for h in held] == [True, True]
    (alone,) = json.loads((runs["one"] / "files" / "held.json").read_text())
    assert sum(h["policy"] for h in held) == alone["policy"]


@pytest.mark.parametrize(
    ("saved_by", "job", "resumed_on", "change"),
    [
        ("two", "adamw", 1, {}),
        ("sharded", "adamw", 1, {}),
        ("one", "adamw", 2, {"shard_weights": True}),
        ("sharded", "adamw", 4, {"shard_weights": True}),
        ("two", "lora", 1, {}),
    ],
)
def test_checkpoints_resume_on_any_number_of_processes(
    runs: dict[str, Path], saved_by: str, job: str, resumed_on: int, change: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = runs[saved_by] / job / "checkpoint-2"
    assert (checkpoint / ANCHOR_FILE).is_file()
    settings = {**(JOBS.get(job) or {**SAVED, "use_peft": True, "lora_r": 4}), **change}
    unsaved = {name: value for name, value in settings.items() if name not in ("save_strategy", "save_steps")}
    train(tmp_path, resumed_on, {job: {**unsaved, "resume": str(checkpoint)}})
    assert_near(tmp_path / job / "final", runs["one"] / job / "final", atol=1e-4)
    assert [line["step"] for line in metrics(tmp_path / job)] == [3, 4]
    for mine, alone in zip(metrics(tmp_path / job), metrics(runs["one"] / job)[2:], strict=True):
        assert mine["loss"] == pytest.approx(alone["loss"], rel=2e-3, abs=2e-4)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`-m nonpareil distill` of a tiny model with a Python reward."""
    folder = tmp_path_factory.mktemp("command")
    model, tokenizer = ending_model(), make_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text(
        "\n".join(["the film was", "a good film", "a very long film", "not bad"])
    )
    (folder / "reward.py").write_text(
        "def length(completion_ids, **_):\n    return [len(ids) + ids[0] / 100 for ids in completion_ids]\n"
    )
    options = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "prompts.txt",
        "eval_dataset_name": folder / "prompts.txt",
        "reward_funcs": f"{folder / 'reward.py'}:length",
        "max_completion_length": 6,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "bf16": "false",
        "kl_dtype": "float32",
        "num_generations_eval": 2,
        "num_reference_samples_eval": 4,
    }
    return ["-m", "nonpareil", "distill", *(f"--{name}={value}" for name, value in options.items())]


def test_torchrun_distils_evaluates_once_and_tells_once(command: list[str], tmp_path: Path) -> None:
    done = launch(2, [*command, f"--output_dir={tmp_path / 'out'}", "--json"])
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{") and "output_dir" in line]
    assert json.loads(line)["steps"] == 3
    assert (tmp_path / "out" / "evaluation" / "report.html").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "spent.json").read_text())["completions_drawn"] == 3 * 4 * 3
    assert done.stderr.count("Report:") == 1


def test_a_signal_to_one_process_stops_all_with_one_checkpoint(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    endless = [*command, f"--output_dir={out}", "--max_steps=100000", "--logging_steps=1"]
    running = subprocess.Popen(
        [sys.executable, *starter, *endless],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() or len((out / "metrics.jsonl").read_text()) < 100:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()[1][-3000:]
        time.sleep(0.2)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGTERM)
    running.communicate(timeout=120)
    (checkpoint,) = out.glob("checkpoint-*")
    assert {"model.safetensors", "optimizer.pt", ANCHOR_FILE} <= {path.name for path in checkpoint.iterdir()}


def test_accelerates_cpu_launcher_which_starts_one_process_is_refused(
    command: list[str], tmp_path: Path
) -> None:
    starter = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, *starter, *command, f"--output_dir={tmp_path / 'out'}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "torchrun --nproc_per_node 2" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "environment", "named"),
    [
        (["--fsdp=full_shard"], {}, "shard_weights"),
        (["--shard_weights=true"], {}, "torchrun"),
        ([], {"ACCELERATE_USE_FSDP": "true"}, "shard_weights"),
        ([], {"ACCELERATE_USE_DEEPSPEED": "true"}, "zero_stage: 3"),
        ([], {**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "give none"),
        ([], {**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero.json"}, "not read"),
        (["--deepspeed=zero.json"], {}, "zero3.yaml"),
    ],
)
def test_sharding_that_would_silently_be_ddp_is_refused(
    command: list[str], tmp_path: Path, flags: list[str], environment: dict[str, str], named: str
) -> None:
    done = launch(1, [*command, *flags, f"--output_dir={tmp_path / 'out'}"], **environment)
    assert done.returncode != 0
    assert named in done.stderr
    assert not (tmp_path / "out").exists()
