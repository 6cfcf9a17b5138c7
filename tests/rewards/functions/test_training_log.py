"""TRL's `trainer_state`, `log_extra` and `log_metric`: what a function is given and logs, here and in a worker."""

import asyncio
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerState

from nonpareil.errors import RewardError
from nonpareil.records import Logged
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rewards.functions.training_log import StateReceiver, StateSender
from nonpareil.training.step.logged import merged_log
from tests.rewards.conftest import request_of

DATA = request_of(("p1", "a"), ("p1", "bb"), ("p2", "ccc"))
STATE = TrainerState(global_step=3, max_steps=10, epoch=0.3, log_history=[{"loss": 1.0, "step": 1}])
TRAINED = replace(DATA, trainer_state=STATE)

WRITTEN = """
import sys

def opened(completions, openings):
    return [-1.0 if opening is None else float(len(opening)) for opening in openings]

def grade(completions, trainer_state, log_extra, log_metric):
    assert "transformers" not in sys.modules, "a worker is light"
    if trainer_state is None:
        return [0.0] * len(completions)
    log_extra("letters", [len(c) for c in completions])
    log_metric("step", trainer_state.global_step)
    log_metric("lines", len(trainer_state.log_history))
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

def any_of_them(completions, **kwargs):
    kwargs["log_metric"]("step", kwargs["trainer_state"].global_step)
    return [1.0 / (len(c) - 2) for c in completions]

def wrong(completions, log_extra):
    try:
        log_extra("letters", [1, 2])
    except Exception:
        pass
    return [0.0] * len(completions)
"""


@pytest.fixture
def written(tmp_path: Path) -> str:
    (tmp_path / "written_rewards.py").write_text(WRITTEN.replace("assert", "assert True or"))
    return str(tmp_path / "written_rewards.py")


@pytest.fixture
def light(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "light_rewards.py").write_text(WRITTEN)
    yield str(tmp_path / "light_rewards.py")
    sys.modules.pop("light_rewards", None)


def test_a_worker_is_given_the_fields_and_gives_back_what_was_logged(light: str) -> None:
    reward = FunctionReward(f"{light}:grade", timeout=60)
    for step in (3, 4):  # the second call sends the log's new line alone
        STATE.global_step = step
        scores = reward.score(TRAINED)
        assert scores.values == pytest.approx([step / 10] * 3), scores.failures
        lines = float(len(STATE.log_history))
        assert scores.logged == Logged({"letters": [1, 2, 3]}, {"step": [float(step)], "lines": [lines]})
        STATE.log_history.append({"loss": 0.5, "step": step})
    assert reward.score(DATA) == type(scores)([0.0] * 3, [None] * 3), "without a training nothing is logged"
    reward.release()
    assert reward.score(TRAINED).logged.metrics["lines"] == [3.0], "a new worker has the whole log"
    reward.release()


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_function_that_names_openings_is_given_them(light: str, timeout: float | None) -> None:
    reward = FunctionReward(f"{light}:opened", timeout=timeout)
    asked = replace(DATA, openings=["<think>", "", None])
    assert reward.score(asked).values == [7.0, 0.0, -1.0]
    assert reward.score(DATA).values == [-1.0] * 3, "of groups of earlier versions they are not known"
    column = replace(asked, columns={"openings": ["e4", "d4", "Nf3"]})  # a dataset of chess
    assert reward.score(column).values == [2.0, 2.0, 3.0]
    reward.release()


def test_a_long_log_is_sent_once() -> None:
    sender, receiver = StateSender(), StateReceiver()
    state = TrainerState(log_history=[{"loss": 1.0}] * 1000)
    first, second = (len(pickle.dumps(sender.pack(state))) for _ in range(2))
    assert second < first / 4
    sender = StateSender()
    assert receiver.unpack(sender.pack(state)).log_history == state.log_history  # type: ignore[union-attr]
    state.log_history.append({"loss": 0.5})
    again = receiver.unpack(sender.pack(state))
    assert again is not None
    assert again.log_history == state.log_history
    assert again.global_step == 0
    resumed = TrainerState(log_history=[{"loss": 2.0}])  # another log, though it is shorter
    assert receiver.unpack(sender.pack(resumed)).log_history == [{"loss": 2.0}]  # type: ignore[union-attr]


@pytest.mark.parametrize("timeout", [None, 60])
def test_kwargs_have_them_as_in_trl_and_failures_are_asked_alone(written: str, timeout: float | None) -> None:
    reward = FunctionReward(f"{written}:any_of_them", timeout=timeout)
    scores = reward.score(TRAINED)
    assert scores.values == [-1.0, None, 1.0]
    assert scores.failures[1] == "ZeroDivisionError: float division by zero"
    assert scores.logged.metrics == {"step": [float(STATE.global_step)] * 2}, (
        "of the two calls that did not fail"
    )
    assert reward.reads_trainer_state
    assert reward.describe()["reads_trainer_state"] is True
    reward.release()


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_column_of_a_wrong_length_is_one_error(written: str, timeout: float | None) -> None:
    reward = FunctionReward(f"{written}:wrong", timeout=timeout)
    message = (
        r"'wrong': log_extra\('letters', \.\.\.\) got 2 values for 3 completions; give one per completion"
    )
    with pytest.raises(RewardError, match=message):
        reward.score(TRAINED)
    assert reward.score(DATA).values == [0.0] * 3, "without a training nobody looks"
    reward.release()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda extra, metric: extra("c", "abc"),
            r"log_extra\('c', \.\.\.\) takes a list of values, got a str",
        ),
        (lambda extra, metric: extra("c", 3), r"takes a list of values, got a int"),
        (lambda extra, metric: extra(3, [1, 2, 3]), r"the column's name must be text"),
        (lambda extra, metric: (extra("c", [1] * 3), extra("c", [2] * 3)), "was called twice in one call"),
        (lambda extra, metric: metric("m", "0.5"), r"log_metric\('m', \.\.\.\) takes a number, got a str"),
        (lambda extra, metric: metric("m", None), "takes a number, got a NoneType"),
        (lambda extra, metric: metric("", 1.0), "the metric's name must be text"),
    ],
)
def test_what_is_no_column_or_metric_is_refused(call: Any, message: str) -> None:
    def reward(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        call(log_extra, log_metric)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=message):
        FunctionReward(reward).score(TRAINED)


def test_values_of_other_libraries_become_plain() -> None:
    async def reward(completions: list[str], trainer_state: Any, log_extra: Any, log_metric: Any) -> Any:
        await asyncio.sleep(0)
        assert trainer_state is STATE
        log_extra("tensor", torch.tensor([1, 2, 3]))
        log_extra("mixed", [np.float32(0.5), None, {"a": (1, Path("x"))}])
        log_metric("mean", torch.tensor(2.0))
        return np.zeros(3)

    logged = FunctionReward(reward).score(TRAINED).logged
    assert logged == Logged({"tensor": [1, 2, 3], "mixed": [0.5, None, {"a": [1, "x"]}]}, {"mean": [2.0]})


def test_two_rewards_may_log_one_metric_and_never_one_column() -> None:
    def first(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("parsed", completions)
        log_metric("right", 1.0)
        return [0.0] * len(completions)

    def second(completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        log_metric("right", 0.0)
        log_extra(name, completions)
        return [0.0] * len(completions)

    name = ""
    for other, message in {
        "parsed": "'second' logs a column 'parsed'.*which reward 'first' has",
        "first": "which reward 'first' has",
        "prompt": "which the table itself has",
    }.items():
        name = other
        scores = CombinedReward([FunctionReward(first), FunctionReward(second)]).score_each(TRAINED)
        with pytest.raises(RewardError, match=message):
            merged_log(scores)
    name = "other"
    scores = CombinedReward([FunctionReward(first), FunctionReward(second)]).score_each(TRAINED)
    assert merged_log(scores) == Logged(
        {"parsed": ["a", "bb", "ccc"], "other": ["a", "bb", "ccc"]}, {"right": [1.0, 0.0]}
    )
