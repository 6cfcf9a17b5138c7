"""kill -9 at any file operation of a distillation: the same command goes on, or anew, to the same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[2]

SAVED = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
KINDS: dict[str, dict[str, Any]] = {
    "checkpoints": SAVED,
    "no checkpoints": {"save_strategy": "no"},
    "adapter": {**SAVED, "use_peft": "true", "lora_r": 2},
}


class Runs:
    """Distillations of one kind in processes that may be killed."""

    def __init__(self, process: subprocess.Popen, files: Path, kind: str, capsys: Any):
        self.process, self.files = process, files
        settings = {"max_steps": 2, "use_cpu": "true", "bf16": "false", "evaluate_after": "false"}
        self.settings = {**settings, **KINDS[kind]}
        self.command = Command(files, capsys)

    def __call__(self, out: Path, *words: str, kill: int | None = None) -> dict[str, Any]:
        argv = [*self.command.flags("distill", **self.settings, output_dir=out), *words]
        asked = {"argv": argv, "folder": str(out), "kill": kill, "log": str(out) + ".log"}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def goes_on(self, out: Path) -> str:
        """The same command with resume, and where that says that nothing is there, as it was."""
        if self(out, "--resume_from_checkpoint", "true")["status"] == 0:
            return "resumed"
        said = Path(f"{out}.log").read_text()
        assert "holds no whole checkpoint; start without it" in said, said
        if self(out)["status"] == 0:
            return "anew"
        # The result was there whole, and only the card was not.
        said = Path(f"{out}.log").read_text()
        assert "--overwrite to start anew" in said, said
        assert (out / "trainer_state.json").is_file()
        assert self(out, "--overwrite")["status"] == 0
        return "overwritten"


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.killed"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield started
    started.stdin.close()
    assert started.wait(timeout=60) == 0


def weights(out: Path) -> dict[str, Any]:
    (file,) = out.glob("*model.safetensors")
    return load_file(file)


def names_in(out: Path) -> list[str]:
    """All but checkpoint-1, which may be one too many where the kill came before it went."""
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    return [name for name in names if name.split("/")[0] != "checkpoint-1"]


def check(runs: Runs, moments: Any) -> None:
    whole = runs.files / "whole"
    operations = runs(whole)["operations"]
    assert len(operations) > 40, operations
    expected = weights(whole)
    names = names_in(whole)
    ends = set()
    for k in moments(operations):
        out = runs.files / f"killed-{k}"
        killed = runs(out, kill=k)
        assert killed["status"] == -signal.SIGKILL, operations[k - 1]
        ends.add(end := runs.goes_on(out))
        ours = weights(out)
        assert ours.keys() == expected.keys()
        assert all(ours[name].equal(value) for name, value in expected.items()), (operations[k - 1], end)
        assert names_in(out) == names, operations[k - 1]
        shutil.rmtree(out)
    assert "anew" in ends


@pytest.fixture
def runs(request: pytest.FixtureRequest, process: subprocess.Popen, files: Path, capsys: Any) -> Runs:
    return Runs(process, files, request.param, capsys)


@pytest.mark.parametrize("runs", list(KINDS), indirect=True)
def test_some_moments(runs: Runs) -> None:
    check(runs, lambda operations: range(1, len(operations) + 1, len(operations) // 4))


@pytest.mark.parametrize("runs", ["checkpoints"], indirect=True)
def test_the_last_checkpoint_is_there_and_what_it_was_written_in_too(runs: Runs) -> None:
    whole = runs.files / "whole"
    operations = runs(whole)["operations"]
    out = runs.files / "killed"
    assert runs(out, kill=operations.index("os.rmdir checkpoint-2.partial") + 1)["status"] == -signal.SIGKILL
    assert (out / "checkpoint-2.partial").is_dir()
    assert runs.goes_on(out) == "resumed"
    assert names_in(out) == names_in(whole)


@pytest.mark.slow
@pytest.mark.parametrize("runs", list(KINDS), indirect=True)
def test_every_moment(runs: Runs) -> None:
    check(runs, lambda operations: range(1, len(operations) + 1))
