"""A reward in a process of its own: what hangs, dies or breaks there costs its own sample and no more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nonpareil.errors import ConfigError, RewardError
from nonpareil.rewards import FunctionReward
from tests.rewards.conftest import request_of

DATA = request_of(("p1", "a"), ("p1", "bb"), ("p2", "ccc"), answer=["x", "x", "y"])


def fragile(completions: list[str], **kwargs: object) -> list[float]:
    return [1 / (len(completion) - 2) for completion in completions]


HANGING = """
import os

def grade(completions, answer, **kwargs):
    while "bb" in completions:
        pass
    if "ccc" in completions and len(completions) == 1:
        raise ValueError("bad answer " + answer[0])
    return [len(c) for c in completions]

def dies(completions, **kwargs):
    if "bb" in completions:
        os._exit(3)
    return [os.getpid()] * len(completions)

def short(completions, **kwargs):
    return [1.0]
"""


@pytest.fixture
def hanging(tmp_path: Path) -> str:
    (tmp_path / "hanging.py").write_text(HANGING)
    return str(tmp_path / "hanging.py")


def test_while_true_is_killed_and_the_job_completes(hanging: str) -> None:
    reward = FunctionReward(f"{hanging}:grade", timeout=1.0)
    start = time.monotonic()
    scores = reward.score(DATA)
    assert scores.values == [1, None, None]
    assert scores.failures == [None, "timed out after 1 s", "ValueError: bad answer y"]
    assert reward.score(DATA.select([0])).values == [1]  # the fresh worker answers the next call
    assert time.monotonic() - start < 30
    process = reward._worker._process  # type: ignore[union-attr]
    reward.release()
    assert process.exitcode is not None


def test_a_worker_that_dies_costs_only_its_own_sample(hanging: str) -> None:
    reward = FunctionReward(f"{hanging}:dies", timeout=30)
    scores = reward.score(DATA)
    assert scores.failures == [None, "the worker process died (exit code 3)", None]
    first = reward.score(DATA.select([0])).values[0]
    assert first == scores.values[2]  # one process serves many calls
    reward.release()


def test_a_broken_contract_in_the_worker_is_the_same_error(hanging: str) -> None:
    reward = FunctionReward(f"{hanging}:short", timeout=30)
    with pytest.raises(RewardError, match="'short' returned 1 values for 3 completions"):
        reward.score(DATA)
    reward.release()


def test_a_function_of_an_imported_module_runs_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # pytest imports this module without it
    reward = FunctionReward(fragile, timeout=30)
    assert reward.score(DATA.select([0, 2])).values == [-1, 1]
    reward.release()


def test_a_script_without_main_guard_is_told_so(hanging: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from nonpareil.rewards import FunctionReward\n"
        "from nonpareil.records import ScoreRequest\n"
        f"reward = FunctionReward({hanging + ':short'!r}, timeout=30)\n"
        "print(reward.score(ScoreRequest(['p'], ['c'], [[1]], {})))\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "ConfigError: the worker process of reward function 'short' ended while starting" in done.stderr


def test_ctrl_c_reaches_the_caller_and_leaves_no_worker(hanging: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from nonpareil.rewards import FunctionReward\n"
        "from nonpareil.records import ScoreRequest\n"
        "if __name__ == '__main__':\n"
        f"    reward = FunctionReward({hanging + ':grade'!r}, timeout=60)\n"
        "    reward.score(ScoreRequest(['p'], ['c'], [[1]], {'answer': ['x']}))\n"
        "    print(reward._worker._process.pid, flush=True)\n"
        "    reward.score(ScoreRequest(['p'], ['bb'], [[1]], {'answer': ['x']}))\n"
    )
    script = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert script.stdout is not None
    worker = int(script.stdout.readline())
    time.sleep(0.3)  # it is now in its `while True`
    os.killpg(script.pid, signal.SIGINT)  # as a terminal does: to parent and worker
    _, errors = script.communicate(timeout=30)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_function_no_other_process_can_import_needs_a_path() -> None:
    with pytest.raises(ConfigError, match=r"path/to/file\.py:fn"):
        FunctionReward(lambda **kwargs: [1.0], timeout=1)


OUTLIVING = """
import ctypes, os, re, subprocess, sys

def note(pid):
    with open("pids", "a") as file:
        file.write(f"{pid}\\n")

def loops(completions, **kwargs):
    note(os.getpid())
    while True:
        pass

def loops_in_c(completions, **kwargs):
    note(os.getpid())
    ctypes.PyDLL(None).sleep(600)  # holds the interpreter, as a C loop does

def starts_others(completions, **kwargs):
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    note(os.getpid())
    note(child.pid)
    child.wait()
"""


@pytest.mark.parametrize("how", ["killed", "timed out"])
@pytest.mark.parametrize("function", ["loops", "loops_in_c", "starts_others"])
def test_no_process_outlives_the_job_or_the_timeout(function: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "outliving.py").write_text(OUTLIVING)
    (tmp_path / "script.py").write_text(
        "import time\n"
        "from nonpareil.rewards import FunctionReward\n"
        "from nonpareil.records import ScoreRequest\n"
        "if __name__ == '__main__':\n"
        f"    reward = FunctionReward('outliving.py:{function}', timeout={60 if how == 'killed' else 1})\n"
        "    print(reward.score(ScoreRequest(['p'], ['c'], [[1]], {})), flush=True)\n"
        "    time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        wanted = 2 if function == "starts_others" else 1
        until(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == wanted)
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        if how == "killed":
            job.kill()
        else:
            assert "timed out after 1 s" in job.stdout.readline()
        until(lambda: not any(map(runs, pids)))
    finally:
        job.kill()
        job.communicate()


def until(holds: Callable[[], bool]) -> None:
    """Wait, half a minute at most."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has asked about."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")
