"""A run that is stopped and taken up again ends as one that never stopped."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from nonpareil.errors import DataError
from nonpareil.training.checkpoints.files import last_whole_checkpoint
from nonpareil.training.trainer import DistillationTrainer
from tests.training.conftest import (
    StopAfter,
    assert_same,
    ending_model,
    goodness,
    make_trainer,
    metrics,
    slow_goodness,
)

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}


def assert_same_checkpoint(one: Path, other: Path) -> None:
    for file in ("model.safetensors", "anchor.safetensors"):
        assert_same(load_file(one / file), load_file(other / file))
    ours, theirs = (torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in (one, other))
    assert ours.keys() == theirs.keys()
    assert ours
    for key, state in ours.items():
        assert_same(state, theirs[key])
    states = [json.loads((path / "trainer_state.json").read_text()) for path in (one, other)]
    assert states[0]["num_input_tokens_seen"] == states[1]["num_input_tokens_seen"]


@pytest.mark.parametrize("bf16", [False, True])
def test_four_steps_are_two_and_resume_and_two_bit_for_bit(bf16: bool, tmp_path: Path) -> None:
    """Six prompts in batches of four: the data order of the second epoch is among what must be right."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(whole, bf16=bf16, **STEPS).train()
    make_trainer(parts, bf16=bf16, callbacks=[StopAfter(2)], **STEPS).train()
    assert last_whole_checkpoint(parts) == parts / "checkpoint-2"
    torch.manual_seed(99)  # whatever the new process has drawn before
    make_trainer(parts, bf16=bf16, model=ending_model(seed=3), **STEPS).train(resume_from_checkpoint=True)
    assert_same_checkpoint(whole / "checkpoint-4", parts / "checkpoint-4")
    assert len(metrics(whole)) == 4
    assert metrics(whole) == metrics(parts)
    starts, ends = (load_file(whole / f"checkpoint-{n}" / "anchor.safetensors") for n in (2, 4))
    assert any(not torch.equal(starts[name], ends[name]) for name in starts), "the anchor moves"


def run_until(output_dir: Path, steps: int, **options: Any) -> subprocess.Popen[bytes]:
    """A training process of slow rewards, running until its log has so many steps."""
    program = (
        "import sys, torch; from pathlib import Path; from tests.training.conftest import *; "
        "torch.set_num_threads(1); "
        "make_trainer(Path(sys.argv[1]), reward=slow_goodness, max_steps=40).train()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(output_dir)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )
    log, deadline = output_dir / "metrics.jsonl", time.monotonic() + 120
    while not log.is_file() or len(log.read_text().splitlines()) < steps:
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def heed_hangups() -> None:
    """Also where the tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_ctrl_c_leaves_a_whole_checkpoint_from_which_the_same_end_is_reached(
    number: signal.Signals, tmp_path: Path
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = run_until(stopped, 2, preexec_fn=heed_hangups)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    checkpoint = last_whole_checkpoint(stopped)
    assert checkpoint is not None
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 2 <= step < 40
    for folder in (stopped, whole):
        # As many steps as were meant, so that the learning rate falls alike; both end two steps on.
        reward = slow_goodness if folder is stopped else goodness
        trainer = make_trainer(folder, reward=reward, max_steps=40, callbacks=[StopAfter(step + 2)])
        trainer.train(resume_from_checkpoint=folder is stopped)
    last = f"checkpoint-{step + 2}"
    assert_same_checkpoint(stopped / last, whole / last)
    ours, theirs = metrics(stopped), metrics(whole)
    assert [line["step"] for line in ours] == list(range(1, step + 3))
    named = [{k.replace("slow_", ""): v for k, v in line.items()} for line in ours]
    assert named == theirs


def test_the_end_of_a_terminal_leaves_a_checkpoint_too(tmp_path: Path) -> None:
    """The kernel's SIGHUP to what runs in it, while what is written to it is lost; and a second, from the shell."""
    terminal, side = os.openpty()

    def take_terminal() -> None:
        heed_hangups()
        os.setsid()
        fcntl.ioctl(side, termios.TIOCSCTTY, 0)

    process = run_until(tmp_path, 2, stdin=side, stdout=side, stderr=side, preexec_fn=take_terminal)
    os.close(side)
    os.close(terminal)
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=60)
    assert last_whole_checkpoint(tmp_path) is not None


def test_a_hangup_that_was_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer(tmp_path, max_steps=2, callbacks=[Hangup()])
        trainer.train()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert trainer.state.global_step == 2
    assert not trainer.stopper.stopped
    assert last_whole_checkpoint(tmp_path) is None


class Hangup(TrainerCallback):
    """The terminal goes in the first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_second_training_of_one_trainer_is_not_stopped_by_the_first_ones_signal(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    interrupt = Interrupt()
    trainer.add_callback(interrupt)
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.stopper.stopped
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    trainer.remove_callback(interrupt)
    trainer.train()
    assert trainer.state.global_step == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_that_comes_while_the_other_processes_are_asked_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, max_steps=4)

    def interrupted_meanwhile(flag: bool) -> bool:
        if trainer.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return flag

    monkeypatch.setattr("nonpareil.training.callbacks.any_process", interrupted_meanwhile)
    trainer.train()
    assert trainer.state.global_step == 2, "all heed it a step later"
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.fixture
def checkpoints(tmp_path: Path) -> DistillationTrainer:
    trainer = make_trainer(tmp_path, **STEPS)
    trainer.train()
    return trainer


@pytest.mark.parametrize("missing", ["anchor.safetensors", "optimizer.pt", "trainer_state.json"])
def test_the_last_whole_checkpoint_lacks_nothing(
    missing: str, checkpoints: DistillationTrainer, tmp_path: Path
) -> None:
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / missing).unlink()
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-old")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / missing).unlink()
    assert last_whole_checkpoint(tmp_path) is None
    with pytest.raises(DataError, match=r"holds no whole checkpoint; start without it"):
        make_trainer(tmp_path, **STEPS).train(resume_from_checkpoint=True)
    if missing == "anchor.safetensors":
        with pytest.raises(DataError, match=r"anchor\.safetensors is missing"):
            make_trainer(tmp_path, **STEPS).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_log_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(whole, **STEPS).train()
    make_trainer(parts, callbacks=[StopAfter(2)], **STEPS).train()
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "los')
    make_trainer(parts, **STEPS).train(resume_from_checkpoint=True)
    assert metrics(parts) == metrics(whole)


def test_without_an_argument_a_run_is_taken_up_as_the_settings_say(tmp_path: Path) -> None:
    class Begins(TrainerCallback):
        steps: list[int] = []  # noqa: RUF012

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.append(state.global_step)

    make_trainer(tmp_path, callbacks=[StopAfter(2)], **STEPS).train()
    asked: dict[str, Any] = {**STEPS, "resume_from_checkpoint": True}
    make_trainer(tmp_path, callbacks=[Begins()], **asked).train()
    make_trainer(tmp_path, callbacks=[Begins()], **asked).train(resume_from_checkpoint=False)
    assert Begins.steps == [2, 0]
