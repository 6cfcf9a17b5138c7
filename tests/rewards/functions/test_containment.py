"""Whatever a reward does is a number, a null with its reason or one error: the same here and in a worker."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards import CombinedReward, FunctionReward, load_function
from tests.rewards.conftest import request_of

DATA = request_of(("p1", "a"), ("p1", "bb"), ("p2", "ccc"), answer=["x", "x", "y"])
RIGHT = [1.0, 2.0, 3.0]
ONE_NULL = [1.0, None, 3.0]


BEHAVIOURS = Path(__file__).with_name("behaviours.py")
NUMBERS = [
    *("column", "nested", "scalars", "zero_dimensional", "tensor", "tensors", "exact", "series", "generator"),
    *("changes_the_process", "guards_itself", "closes_the_streams", "prints", "forks", "forks_and_raises"),
    *("starts_threads", "async_lengths"),
]


def make(name: str, timeout: float | None = None) -> FunctionReward:
    return FunctionReward(f"{BEHAVIOURS}:{name}", timeout=timeout)


@pytest.fixture(scope="module")
def in_a_worker() -> Iterator[Any]:
    """Scores of a behaviour in another process: one for all of them, since it takes seconds to import torch."""
    made = make("any_of_them", timeout=60)

    def score(name: str, request: ScoreRequest) -> Scores:
        columns = {**request.columns, "name": [name] * len(request)}
        return made.score(replace(request, columns=columns))

    yield score
    made.release()


@pytest.mark.parametrize("name", NUMBERS)
def test_the_right_numbers(name: str, in_a_worker: Any) -> None:
    here = make(name).score(DATA)
    assert here == Scores(RIGHT, [None] * 3)
    assert in_a_worker(name, DATA) == here
    assert {type(value) for value in here.values} == {float}


@pytest.mark.parametrize("name", ["booleans", "numpy_booleans"])
def test_a_boolean_is_one_or_zero(name: str, in_a_worker: Any) -> None:
    here = make(name).score(DATA)
    assert here.values == [0.0, 1.0, 1.0]
    assert in_a_worker(name, DATA) == here


@pytest.mark.parametrize(
    ("name", "values", "failures"),
    [
        (
            "strange",
            [None] * 3,
            [
                "returned a complex, not a number",
                "returned a str, not a number",
                "returned a list, not a number",
            ],
        ),
        ("absent", [None] * 3, ["returned None", "returned a NAType, not a number", "returned nan"]),
        ("outside", [None] * 3, ["returned inf", "returned a Decimal, not a number", "returned inf"]),
        ("with_an_evil_number", [None, 2, 3], ["returned a Evil, not a number", None, None]),
        ("exits", ONE_NULL, [None, "SystemExit: 0", None]),
        ("quits", ONE_NULL, [None, "SystemExit: 3", None]),
        ("interrupts", ONE_NULL, [None, "KeyboardInterrupt: why", None]),
        ("closes_its_generator", ONE_NULL, [None, "GeneratorExit: why", None]),
        ("raises_a_base_exception", ONE_NULL, [None, "BaseException: why", None]),
        ("raises_a_group", ONE_NULL, [None, "BaseExceptionGroup: why (1 sub-exception)", None]),
        ("raises_the_unprintable", ONE_NULL, [None, "Unprintable: (its message cannot be read)", None]),
        ("raises_escapes", ONE_NULL, [None, r"ValueError: boom \x1b[31mred", None]),
        ("fails_while_it_yields", ONE_NULL, [None, "SystemExit: 1", None]),
        ("refuses_a_text", ONE_NULL, [None, "DataError: why", None]),
        ("async_exits", [None] * 3, ["SystemExit: 0"] * 3),
        ("async_exits_in_a_task", [None] * 3, ["SystemExit: 0"] * 3),
        ("async_cancels_itself", [None] * 3, ["CancelledError: of my own"] * 3),
        ("asks_a_closed_port", [None] * 3, ["RuntimeError: the service is down"] * 3),
    ],
)
def test_a_null_with_its_reason(name: str, values: list[Any], failures: list[Any], in_a_worker: Any) -> None:
    here = make(name).score(DATA)
    assert here == Scores(values, failures)
    assert in_a_worker(name, DATA) == here


def test_an_endless_recursion_is_a_null(in_a_worker: Any) -> None:
    name = "never_returns_from_itself"
    for scores in (make(name).score(DATA), in_a_worker(name, DATA)):
        assert scores.values == ONE_NULL
        assert str(scores.failures[1]).startswith("RecursionError: maximum recursion depth exceeded")


@pytest.mark.parametrize("name", ["nothing", "a_string", "a_dictionary", "a_set", "too_many", "too_few"])
def test_no_list_is_one_error_that_names_the_function(name: str, in_a_worker: Any) -> None:
    said = []
    for score in (make(name).score, lambda data: in_a_worker(name, data)):
        with pytest.raises(RewardError, match=r"^reward function '\w+' returned .* 3 ") as caught:
            score(DATA)
        said.append(str(caught.value).replace("any_of_them", name))
    assert name in said[0]
    assert said[0] == said[1]


def test_random_numbers_follow_from_what_is_scored(in_a_worker: Any) -> None:
    reward = make("random_numbers")
    here = reward.score(DATA)
    assert reward.score(DATA) == here == in_a_worker("random_numbers", DATA)
    other = reward.score(DATA.select([2, 1, 0]))
    assert set(other.values).isdisjoint(here.values)


def test_each_call_gets_lists_of_its_own(in_a_worker: Any) -> None:
    shared = [{"role": "user", "content": "ask"}]
    data = request_of((shared, "a"), (shared, "bb"), (shared, "ccc"), answer=[["x"], ["x"], ["y"]])
    before = json.dumps([data.prompts, data.completions, data.completion_ids, data.columns])
    both = CombinedReward([make("changes_what_it_is_given"), make("column")])
    scores = both.score_each(data)
    # The prompt's one message stands behind three completions, and is three messages for the function.
    assert scores["changes_what_it_is_given"].values == [4, 5, 6]
    assert scores["column"].values == RIGHT
    assert in_a_worker("changes_what_it_is_given", data).values == [4, 5, 6]
    assert json.dumps([data.prompts, data.completions, data.completion_ids, data.columns]) == before


def state() -> dict[str, Any]:
    """All that a reward might leave changed."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "folder": os.getcwd(),
        "umask": mask,
        "environment": dict(os.environ),
        "path": list(sys.path),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "descriptors": [os.fstat(number).st_ino for number in (0, 1, 2)],
        "recursion": sys.getrecursionlimit(),
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "functions": (os.kill, os._exit, os.fork, subprocess.Popen, sys.modules["resource"]),
    }


@pytest.mark.parametrize(
    "name", ["changes_the_process", "guards_itself", "closes_the_streams", "exits", "prints"]
)
def test_the_process_stays_as_it_was(name: str) -> None:
    before = state()
    make(name).score(DATA)
    assert state() == before


def run_script(body: str, folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """A job of its own, `reward` and `DATA` at hand."""
    head = """
        import os, signal, sys, time
        from nonpareil.rewards import FunctionReward
        from nonpareil.records import ScoreRequest
        DATA = ScoreRequest(["p"] * 3, ["a", "bb", "ccc"], [[1]] * 3, {"answer": ["x", "x", "y"]})
    """
    guarded = 'if __name__ == "__main__":\n' + textwrap.indent(textwrap.dedent(body), "    ")
    (folder / "job.py").write_text(textwrap.dedent(head) + guarded)
    return subprocess.run(
        [sys.executable, str(folder / "job.py")],
        **{"capture_output": True, "text": True, "timeout": 60, "check": False, **settings},
    )


@pytest.mark.parametrize("timeout", [None, 60])
def test_what_it_prints_goes_to_stderr_and_acts_on_no_terminal(timeout: int | None, tmp_path: Path) -> None:
    done = run_script(
        f"""
        reward = FunctionReward({str(BEHAVIOURS)!r} + ":prints", timeout={timeout})
        print("ours", flush=True)
        print(reward.score(DATA).values)
        reward.release()
        """,
        tmp_path,
    )
    assert done.stdout == "ours\n[1.0, 2.0, 3.0]\n", done.stderr
    assert "  \\x1b[2Jnonpareil: all is well\n" in done.stderr
    for line in ("no end of line", "to the first stdout", "to the descriptor", "of a program"):
        assert line in done.stderr
    assert "\x1b" not in done.stderr
    assert not any(line.startswith("nonpareil:") for line in done.stderr.splitlines())


def test_leaving_by_os_exit_does_not_end_the_job(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(
        "import os\nfrom os import _exit\n"
        "def leaves(completions, **k):\n"
        "    if 'bb' in completions: os._exit(0)\n"
        "    if 'ccc' in completions: _exit(0)\n"
        "    return [1.0] * len(completions)\n"
    )
    done = run_script(
        f"""
        scores = FunctionReward({str(tmp_path / "leaver.py")!r} + ":leaves").score(DATA)
        print(scores.values, scores.failures)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "[1.0, None, None] [None, 'SystemExit: os._exit(0)', 'SystemExit: os._exit(0)']\n",
    )


@pytest.mark.parametrize("line", ["raise SystemExit(0)", "import os; os._exit(0)", "raise KeyboardInterrupt"])
def test_a_file_that_leaves_while_it_is_imported_is_a_clear_error(line: str, tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(f"import os, random\nrandom.seed(3)\nos.chdir('/')\n{line}\n")
    folder, numbers = os.getcwd(), random.getstate()
    with pytest.raises(ConfigError, match=r"importing .*leaver.py failed: (SystemExit|KeyboardInterrupt)"):
        load_function(f"{tmp_path}/leaver.py:grade")
    assert (os.getcwd(), random.getstate()) == (folder, numbers)


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_still_interrupts(swallowed: bool, tmp_path: Path) -> None:
    """Of the user's own: a signal, and not an exception of the function."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "def grade(completions, **k):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(30)\n"
        f"    except {'BaseException' if swallowed else 'ValueError'}:\n"
        "        pass\n"
        "    return [1.0] * len(completions)\n"
    )
    started = time.monotonic()
    done = run_script(
        f"""
        reward = FunctionReward({str(tmp_path / "slow.py")!r} + ":grade")
        try:
            print(reward.score(DATA))
        except KeyboardInterrupt:
            print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """,
        tmp_path,
    )
    assert done.stdout == "interrupted True\n", done.stderr
    assert time.monotonic() - started < 25


def test_a_handler_of_ours_that_only_takes_note_lets_the_call_end() -> None:
    """As the trainer's does: the step is finished, and a second Ctrl-C interrupts."""
    seen: list[int] = []

    def stop(number: int, frame: Any) -> None:
        seen.append(number)
        signal.signal(number, signal.default_int_handler)

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        os.kill(os.getpid(), signal.SIGINT)
        return [float(len(completion)) for completion in completions]

    before = signal.signal(signal.SIGINT, stop)
    try:
        assert FunctionReward(reward).score(DATA).values == RIGHT
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
