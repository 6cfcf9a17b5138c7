"""kill -9 at any file operation of a distillation or search: the same command goes on, or anew, to the same end."""

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

from nonpareil import read_groups
from nonpareil.errors import DataError
from nonpareil.folders import writing
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


# --- A search

PROMPTS = 5
MOMENTS = [
    "os.rename answers.jsonl.search/data/.shard-00001",
    "written .answers.jsonl.",
    "os.remove answers.jsonl.search/data/shard-00001",
]


class Searches:
    """Searches of five prompts, two kept at a time, in processes that may be killed."""

    def __init__(self, process: subprocess.Popen, files: Path):
        self.process, self.files = process, files

    def __call__(self, out: Path, kill: int | None = None, **changes: Any) -> dict[str, Any]:
        given = {
            "model_name_or_path": self.files / "policy",
            "dataset_name": self.files / "train.jsonl",
            "reward_funcs": f"{self.files}/rewards.py:good",
            "output": out / "answers.jsonl",
            "max_completion_length": 8,
            "num_generations": 4,
            "max_prompts": PROMPTS,
            "shard_size": 2,
            **changes,
        }
        argv = ["search", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
        asked = {"argv": argv, "folder": str(out), "kill": kill, "log": f"{out}.log"}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return {**json.loads(self.process.stdout.readline()), "said": Path(f"{out}.log").read_text()}


@pytest.fixture
def searches(process: subprocess.Popen, files: Path) -> Searches:
    return Searches(process, files)


def moment(operations: list[str], beginning: str) -> int:
    return next(k for k, operation in enumerate(operations, 1) if operation.startswith(beginning))


def check_search(searches: Searches, moments: Any) -> None:
    whole = searches.files / "whole"
    done = searches(whole)
    operations = done["operations"]
    assert (done["status"], len(operations) > 40) == (0, True), done
    last = operations.index("os.remove answers.jsonl.search/manifest.json") + 1
    assert names_in(whole) == [".answers.jsonl.nonpareil.json", "answers.jsonl"]
    taken_up = set()
    for k in moments(operations):
        out = searches.files / f"killed-{k}"
        assert searches(out, kill=k)["status"] == -signal.SIGKILL, operations[k - 1]
        again = searches(out)
        if again["status"] == 2 and k > last:  # all was done, and all that was kept is gone
            assert "exists; give another path, or overwrite" in again["said"]
        else:
            assert again["status"] == 0, (operations[k - 1], again["said"])
            assert names_in(out) == names_in(whole), operations[k - 1]
            assert k <= last
        taken_up.add(next((n for n in "123" if f"{n} of 3 shards are drawn" in again["said"]), None))
        assert (out / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
        shutil.rmtree(out)
    assert "1" in taken_up


def test_some_moments_of_a_search(searches: Searches) -> None:
    check_search(searches, lambda operations: [moment(operations, each) for each in MOMENTS])


@pytest.mark.slow
def test_every_moment_of_a_search(searches: Searches) -> None:
    check_search(searches, lambda operations: range(1, len(operations) + 1))


def test_what_was_kept_is_of_its_settings_and_no_groups(searches: Searches, files: Path) -> None:
    out = files / "out"
    operations = searches(files / "whole")["operations"]
    third = moment(operations, "open answers.jsonl.search/data/.shard-00002")
    searches(out, kill=third)
    kept = out / "answers.jsonl.search"
    assert (kept / "data" / "shard-00001.parquet").is_file()
    with pytest.raises(DataError, match="answers that a stopped search keeps"):
        read_groups(kept)
    before = names_in(kept)
    reward = files / "rewards.py"
    for changes, said in (
        ({"score_at": 3}, "score_at: [2, 4] there, [3] now"),
        ({"temperature": 0.5}, "sampling.temperature: 1.0 there, 0.5 now"),
        ({"reward_funcs": f"{reward}:few"}, "rewards.good.function: 'good' there, None now"),
    ):
        refused = searches(out, **changes)
        assert refused["status"] == 2, refused
        assert said in refused["said"]
        (line,) = (line for line in refused["said"].splitlines() if line.startswith("nonpareil: "))
        assert "Give those to go on, another output, or overwrite to begin anew" in line
        assert names_in(kept) == before
    with writing(kept, "search"):
        assert "is being written to by another process" in searches(out)["said"]
    more = searches(out, max_prompts=PROMPTS + 2)
    assert (more["status"], "grows: prompts from 5 to 7; what is there stays" in more["said"]) == (0, True), (
        more
    )
    rows = (out / "answers.jsonl").read_text().splitlines()
    assert rows[:PROMPTS] == (files / "whole" / "answers.jsonl").read_text().splitlines()
    assert len(rows) == PROMPTS + 2
    searches(out, kill=third, score_at=3, overwrite="true")
    assert (out / "answers.jsonl").read_text().splitlines() == rows  # until the new one is whole
    anew = searches(out, overwrite="true")
    assert anew["status"] == 0, anew["said"]
    assert (out / "answers.jsonl").read_bytes() == (files / "whole" / "answers.jsonl").read_bytes()
    assert not kept.exists()
