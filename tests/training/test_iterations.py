"""Resume of every kind of run, several steps on one batch of draws, and how the anchor moves."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from nonpareil.errors import ConfigError
from nonpareil.markers import OutputFolder
from nonpareil.methods import build
from nonpareil.models.anchors import Anchor
from nonpareil.training import DistillationConfig
from nonpareil.training.checkpoints.files import last_whole_checkpoint
from nonpareil.training.method import check_method
from nonpareil.training.prompt_order import RepeatedBatches
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    assert_same,
    ending_model,
    make_trainer,
    metrics,
    stored_groups,
    weights,
)

STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
BOND = {"method": "bond", "n": 2, "num_reference_samples": 2}
TWICE = {
    "method": "vbon",
    "n": 2,
    "num_generations": 2,
    "num_reference_samples": 2,
    "num_iterations": 2,
    "per_device_train_batch_size": 2,  # three batches an epoch: the run is taken up inside one
}
SFT = {"method": "sft_bon", "n": 2}


class InterruptAt(TrainerCallback):
    """Ctrl-C during a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class Seen(TrainerCallback):
    """Whether the anchor equals the policy at the beginning of each step."""

    def __init__(self) -> None:
        self.equal: list[bool] = []
        self.anchor: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ours, theirs = weights(kwargs["model"]), weights(self.anchor.module)
        self.equal.append(all(torch.equal(ours[name], theirs[name]) for name in ours))


def spent(output_dir: Path) -> dict[str, Any]:
    """What does not depend on the clock."""
    sums = json.loads((output_dir / "spent.json").read_text())
    return {k: v for k, v in sums.items() if k not in ("seconds", "peak_memory_bytes")}


def assert_same_end(one: Path, other: Path, anchored: bool) -> None:
    last = [folder / "checkpoint-4" for folder in (one, other)]
    for name in ("model.safetensors", *(["anchor.safetensors"] if anchored else [])):
        assert_same(load_file(last[0] / name), load_file(last[1] / name))
    assert (last[0] / "anchor.safetensors").exists() == anchored
    ours, theirs = (torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in last)
    assert ours
    for key, state in ours.items():
        assert_same(state, theirs[key])
    assert len(metrics(one)) == 4
    assert metrics(one) == metrics(other)
    assert spent(one) == spent(other)
    assert spent(one)["steps"] == 4


@pytest.mark.parametrize(
    ("settings", "stored", "anchored"),
    [
        pytest.param({**BOND, "anchor_refresh_steps": 2}, False, True, marks=pytest.mark.slow),
        ({**BOND, "anchor_refresh_steps": 3}, False, True),
        (TWICE, False, False),
        (SFT, True, False),
    ],
)
def test_four_steps_are_two_and_resume_and_two_bit_for_bit(
    settings: dict[str, Any], stored: bool, anchored: bool, tmp_path: Path
) -> None:
    """The fixed reference is in no checkpoint: it is the model that the trainer is given again."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    groups = stored_groups(4) if stored else None
    make_trainer(whole, groups=groups, **settings, **STEPS).train()
    make_trainer(parts, groups=groups, callbacks=[StopAfter(2)], **settings, **STEPS).train()
    assert last_whole_checkpoint(parts) == parts / "checkpoint-2"
    assert spent(parts)["steps"] == 2
    torch.manual_seed(99)
    # Where the reference is not needed, the weights given are not either.
    model = ending_model(seed=3 if anchored or stored else 0)
    make_trainer(parts, groups=groups, model=model, **settings, **STEPS).train(resume_from_checkpoint=True)
    assert_same_end(whole, parts, anchored)
    starts = [load_file(whole / f"checkpoint-{n}" / "model.safetensors") for n in (2, 4)]
    assert any(not torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def test_a_second_training_of_one_trainer_draws_anew(tmp_path: Path) -> None:
    """And not from what the first one drew at a step of the same number."""
    trainer = make_trainer(tmp_path, **{**TWICE, "max_steps": 2})
    trainer.train()
    assert trainer.spent.completions_drawn == 2 * 4
    trainer.train()
    assert trainer.spent.completions_drawn == 2 * 2 * 4


def test_ctrl_c_between_two_steps_on_the_same_draws_waits_for_the_second(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {**TWICE, **STEPS, "save_steps": 4}
    make_trainer(whole, **settings).train()
    stopped = make_trainer(parts, callbacks=[InterruptAt(1)], **settings)
    stopped.train()
    assert stopped.stopper.stopped
    assert stopped.state.global_step == 2
    assert [path.name for path in parts.glob("checkpoint-*")] == ["checkpoint-2"]
    make_trainer(parts, **settings).train(resume_from_checkpoint=True)
    assert_same_end(whole, parts, anchored=False)


def test_a_whole_checkpoint_is_there_before_an_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With save_total_limit=1 a kill at any moment leaves one to go on from."""
    removed: list[str] = []
    delete = OutputFolder.delete

    def checked(folder: OutputFolder, place: str = "") -> None:
        left = last_whole_checkpoint(tmp_path)
        assert left is not None
        assert left.name != place
        removed.append(place)
        delete(folder, place)

    monkeypatch.setattr(OutputFolder, "delete", checked)
    settings = {**STEPS, "save_steps": 1, "save_total_limit": 1}
    make_trainer(tmp_path, **BOND, anchor_refresh_steps=2, **settings).train()
    assert removed == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_batch_of_draws_serves_so_many_steps_and_no_more(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **{**TWICE, "num_iterations": 3}, max_steps=12)
    drawn, trained = [], []
    engine, accumulator = trainer.step_sampler.actors.engine, trainer.accumulator
    draw, accumulate = engine.draw, accumulator.step

    def counted_draw(prompts: Any, m: int, *rest: Any) -> Any:
        drawn.append((trainer.state.global_step, m, [prompt.prompt_id for prompt in prompts]))
        return draw(prompts, m, *rest)

    def counted_step(model: Any, step: Any, *rest: Any) -> Any:
        trained.append([group.prompt_id for group in step.groups])
        return accumulate(model, step, *rest)

    engine.draw, accumulator.step = counted_draw, counted_step
    trainer.train()
    order = RepeatedBatches(len(PROMPTS), 2, 3, seed=7)
    first = list(order)
    order.set_epoch(1)
    rows = first + list(order)
    batches = [[PROMPTS[row].prompt_id for row in rows[start : start + 2]] for start in range(0, 24, 2)]
    assert trained == batches, "the second epoch is shuffled anew"
    assert [(step, ids) for step, _, ids in drawn] == [
        (s, batches[s]) for s in (0, 3, 6, 9) for _ in range(2)
    ]
    assert [m for _, m, _ in drawn] == [2, 2] * 4, "once of the policy, once of the reference"


def test_repeated_batches() -> None:
    order = RepeatedBatches(7, 3, 2, seed=1)
    rows = list(order)
    assert len(rows) == len(order) == 12
    assert rows[0:3] == rows[3:6]
    assert rows[6:9] == rows[9:12]
    assert len({*rows}) == 6, "the seventh fills no batch"
    assert list(order) == rows
    order.set_epoch(1)
    assert list(order) != rows
    assert list(RepeatedBatches(7, 3, 2, seed=2)) != rows
    with pytest.raises(
        ConfigError, match=r"per_device_train_batch_size: a step has 3 prompts .* more than the 2 .*lower it"
    ):
        RepeatedBatches(2, 3, 2, seed=1)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"save_strategy": "steps", "save_steps": 5}, "save_steps=5 is no multiple of num_iterations=2"),
        ({"num_iterations": 0}, "num_iterations=0 must be at least 1"),
        ({"anchor_refresh_steps": 2}, "anchor_refresh_steps=2 is not read by method=vbon, .*remove"),
        ({"anchor_ema_rate": 0.1}, r"anchor_ema_rate=0\.1 is not read by method=vbon, whose reference is"),
    ],
)
def test_what_vbon_refuses(setting: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, **{**TWICE, **setting})


def test_a_method_given_as_an_object_is_checked_alike(tmp_path: Path) -> None:
    method = build("vbon", {"num_iterations": 2})
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", save_steps=3)
    with pytest.raises(ConfigError, match="save_steps=3 is no multiple of num_iterations=2"):
        check_method(args, method, stored=False)


@pytest.mark.parametrize("method", ["vbon", "rloo", "regression"])
def test_a_fixed_reference_does_not_move(method: str, tmp_path: Path) -> None:
    for setting in ({"anchor_refresh_steps": 2}, {"anchor_ema_rate": 0.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))}=.* is not read by method={method}"):
            make_trainer(tmp_path, method=method, **setting)
    trainer = make_trainer(tmp_path, method=method, max_steps=2)
    trainer.train()
    assert_same(weights(trainer.anchor.module), weights(ending_model()))
    assert any(not torch.equal(v, weights(ending_model())[n]) for n, v in weights(trainer.model).items())


def test_a_refreshed_anchor_is_an_exact_copy_every_so_many_steps(tmp_path: Path) -> None:
    seen = Seen()
    trainer = make_trainer(tmp_path, callbacks=[seen], **BOND, anchor_refresh_steps=2, max_steps=5)
    seen.anchor = trainer.anchor
    trainer.train()
    assert seen.equal == [True, False, True, False, True]


def test_an_anchor_moves_one_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"anchor_ema_rate and anchor_refresh_steps: .*give one"):
        make_trainer(tmp_path, **BOND, anchor_refresh_steps=2, anchor_ema_rate=0.1)
    with pytest.raises(ConfigError, match="anchor_refresh_steps=0 must be at least 1"):
        make_trainer(tmp_path, **BOND, anchor_refresh_steps=0)
    follows = make_trainer(tmp_path / "follows", **BOND, anchor_ema_rate=0.1).anchor
    fixed = make_trainer(tmp_path / "fixed", **BOND).anchor
    assert isinstance(follows, Anchor)
    assert isinstance(fixed, Anchor)
    assert (follows.rate, follows.refresh_steps, follows.moves) == (0.1, 0, True)
    assert (fixed.rate, fixed.refresh_steps, fixed.moves) == (0.0, 0, False)
