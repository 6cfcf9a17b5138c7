"""kill -9 at any file operation of a search: the same command goes on to the same file, to the last byte."""

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

from nonpareil.folders import writing

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 5


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.killed", "search"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield started
    started.stdin.close()
    assert started.wait(timeout=60) == 0


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


def names_in(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))


def check(searches: Searches, moments: Any) -> None:
    whole = searches.files / "whole"
    done = searches(whole)
    operations = done["operations"]
    assert (done["status"], len(operations) > 40) == (0, True), done
    assert names_in(whole) == [".answers.jsonl.nonpareil.json", "answers.jsonl"]
    taken_up = set()
    for k in moments(operations):
        out = searches.files / f"killed-{k}"
        assert searches(out, kill=k)["status"] == -signal.SIGKILL, operations[k - 1]
        again = searches(out)
        if again["status"] == 2 and k > len(operations) - 10:  # all was done, and all that was kept is gone
            assert "exists; give another path, or overwrite" in again["said"]
        else:
            assert again["status"] == 0, (operations[k - 1], again["said"])
            assert names_in(out) == names_in(whole), operations[k - 1]
        taken_up.add(next((n for n in "123" if f"{n} of 3 shards are drawn" in again["said"]), None))
        assert (out / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
        shutil.rmtree(out)
    assert taken_up > {"1", "2"}


def test_some_moments(searches: Searches) -> None:
    check(searches, lambda operations: range(5, len(operations) + 1, len(operations) // 7))


@pytest.mark.slow
def test_every_moment(searches: Searches) -> None:
    check(searches, lambda operations: range(1, len(operations) + 1))


def test_what_was_kept_is_of_its_settings_and_no_groups(searches: Searches, files: Path) -> None:
    from nonpareil import read_groups
    from nonpareil.errors import DataError

    out = files / "out"
    operations = searches(files / "whole")["operations"]
    second = operations.index("os.rename answers.jsonl.search/data/shard-00001.parquet")
    searches(out, kill=second + 2)
    kept = out / "answers.jsonl.search"
    assert (kept / "data" / "shard-00001.parquet").is_file()
    with pytest.raises(DataError, match="answers that a stopped search keeps"):
        read_groups(kept)
    before = names_in(kept)
    reward = files / "rewards.py"
    for changes, said in (
        ({"score_at": 3}, "score_at: [2, 4] there, [3] now"),
        ({"num_generations": 6}, "num_generations: 4 there, 6 now"),
        ({"temperature": 0.5}, "sampling.temperature: 1.0 there, 0.5 now"),
        ({"max_prompts": 4}, "prompts.count: 5 there, 4 now"),
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
    more = searches(out, max_prompts=PROMPTS + 2)  # and what is there is not searched again
    assert (more["status"], "3 groups to search" in more["said"]) == (0, True), more["said"]
    rows = (out / "answers.jsonl").read_text().splitlines()
    assert rows[:PROMPTS] == (files / "whole" / "answers.jsonl").read_text().splitlines()
    assert len(rows) == PROMPTS + 2
    searches(out, kill=second + 2, score_at=3, overwrite="true")
    assert (out / "answers.jsonl").read_text().splitlines() == rows  # until the new one is whole
    anew = searches(out, overwrite="true")
    assert anew["status"] == 0, anew["said"]
    assert (out / "answers.jsonl").read_bytes() == (files / "whole" / "answers.jsonl").read_bytes()
    assert not kept.exists()
