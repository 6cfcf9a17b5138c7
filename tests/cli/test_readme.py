"""The README's tour runs as it is written, on a tiny model under the README's names."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from nonpareil.commands.compare.plan import plan_runs
from nonpareil.commands.compare.spec import read_spec
from nonpareil.methods import METHODS
from tests.cli.test_settings import COMMANDS

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
SMALL = "--max_completion_length 6 --report_to none --disable_tqdm true"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found
    return found


@pytest.fixture
def tour(files, monkeypatch):
    """A folder in which the README's names mean the tiny model, its prompts and rewards."""
    monkeypatch.chdir(files)
    for name, source in (("my-model", "policy"), ("my-reward-model", "rm")):
        (files / "my-org").mkdir(exist_ok=True)
        (files / source).rename(files / "my-org" / name)
    (files / "my-org" / "my-prompts").mkdir()
    for split in ("train", "test"):
        text = (files / f"{split}.jsonl").read_text()
        (files / "my-org" / "my-prompts" / f"{split}.jsonl").write_text(text)
    (files / "prompts.jsonl").write_text((files / "train.jsonl").read_text())
    (files / "held-out.jsonl").write_text((files / "test.jsonl").read_text())
    (files / "gold.py").write_text("def score(completions, **_):\n    return [len(c) for c in completions]\n")
    rewards = next(block for block in blocks("python") if block.startswith("# rewards.py"))
    (files / "rewards.py").write_text(rewards)
    config = yaml.safe_load(blocks("yaml")[0])
    config |= {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 6}
    (files / "my-run.yaml").write_text(yaml.safe_dump(config))
    return files


def test_the_commands_run_as_written(nonpareil, tour):
    commands = [
        line
        for block in blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("nonpareil ")
    ]
    named = [shlex.split(line)[1] for line in commands]
    assert named == ["sample", "curve", "export", "distill", "evaluate", "compare"]
    for line in commands[:-1]:
        words = shlex.split(line)[1:]
        if words[0] in ("sample", "evaluate"):
            words += ["--max_completion_length", "6"]
        if words[0] == "distill":
            words += SMALL.split()[2:]
        status, _, err = nonpareil(*words)
        assert status == 0, (line, err)
    assert (tour / "pairs.jsonl").is_file()
    assert (tour / "distilled" / "evaluation" / "report.html").is_file()


def test_the_comparison_can_be_planned_as_written(tour):
    """Every key is known and every run fits the budget; running it takes a process per run (test_compare.py)."""
    (tour / "comparison.yaml").write_text(blocks("yaml")[1])
    plans = plan_runs(read_spec("comparison.yaml"))
    assert sorted({plan.entry.name for plan in plans}) == ["bonbon", "jbond", "rloo", "vbon-4"]
    assert len(plans) == 4 * 3


def test_the_python_tour_runs_as_written(tour):
    code = next(block for block in blocks("python") if "DistillationTrainer" in block)
    small = "max_steps=2, per_device_train_batch_size=4, max_completion_length=6, report_to='none',"
    assert "max_steps=1000" in code
    torch.manual_seed(0)
    exec(code.replace("max_steps=1000,", small), {})
    assert (tour / "distilled" / "metrics.jsonl").is_file()


def test_every_flag_of_the_tables_is_known():
    flags = {
        flag for row in README.splitlines() if row.startswith("|") for flag in re.findall(r"--(\w+)", row)
    }
    assert {"use_peft", "shard_weights", "use_vllm", "engine"} <= flags
    known = {field for cls in (*COMMANDS, *METHODS.values()) for field in cls.__dataclass_fields__}
    assert flags <= known
