"""Steps whose rewards tell nothing move nothing; they are counted and told of, and an error where all are so."""

import json
import os
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from nonpareil.errors import DataError, RewardError
from nonpareil.methods.jbond import JBOND
from nonpareil.models.loading import cast_weights
from nonpareil.training.callbacks import LastWholeStep, StopCleanly
from nonpareil.training.costs import Spent
from nonpareil.training.step.signal import Signal, resting_scaler
from tests.tiny import END
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    assert_same,
    ending_model,
    goodness,
    make_trainer,
    metrics,
    stored_groups,
    weights,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "jbond": {},
    "jbond with lora": {"use_peft": True},
    "bond": {"method": "bond", "n": 2, "num_reference_samples": 3, "anchor_ema_rate": 0.1},
    "vbon": {"method": "vbon", "n": 2, "num_reference_samples": 3, "bound": "l1"},
    "regression": {"method": "regression", "n": 2, "num_reference_samples": 3},
    "rloo": {"method": "rloo", "kl_coef": 1.0},
}


def constant(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [0.7] * len(completion_ids)


class Recorder(TrainerCallback):
    """Policy and anchor after each step, once both have moved."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" not in kwargs["logs"]:
            return
        anchor = {n: w.clone() for n, w in self.trainer.anchor.weights().items()}
        self.seen.append((weights(self.trainer.model), anchor))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_ten_steps_on_a_constant_reward_move_nothing_and_end_as_an_error(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by rounding, momentum or weight decay: to the last bit."""
    trainer = make_trainer(tmp_path, reward=constant, max_steps=10, weight_decay=0.1, **settings)
    before = weights(trainer.model)
    with pytest.raises(RewardError, match=r"none of the 10 steps moved the policy.*raise temperature"):
        trainer.train()
    assert_same(weights(trainer.model), before)
    lines = metrics(tmp_path)
    assert [line["frac_reward_zero_std"] for line in lines] == [1.0] * 10
    assert [line["frac_steps_without_signal"] for line in lines] == [1.0] * 10
    told = capsys.readouterr().err
    assert told.count("step 5: for the 5th step in a row the rewards of no prompt tell") == 1
    assert "step 6" not in told


@pytest.mark.parametrize("changes", [{}, {"use_peft": True}], ids=["full", "lora"])
def test_in_bfloat16_too_the_log_ratio_of_one_model_is_none(changes: dict[str, Any], tmp_path: Path) -> None:
    """Drawn token by token, log-probs in bfloat16 are others than in one pass."""
    model = cast_weights(ending_model(), torch.bfloat16)
    trainer = make_trainer(tmp_path, model=model, bf16=True, max_completion_length=20, **changes)
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    assert batch.draws.policy_token_logprobs.abs().sum() > 1
    assert batch.draws.log_ratio.abs().max() < 1e-5


class Later:
    """Rewards that tell something in some steps only."""

    __name__ = "later"

    def __init__(self, *telling: int):
        self.telling, self.step = {*telling}, -1  # a set is no setting that a resume compares

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        self.step += 1
        return goodness(completion_ids) if self.step in self.telling else constant(completion_ids)


def test_a_step_without_signal_stops_momentum_and_the_moving_anchor(tmp_path: Path) -> None:
    """Adam has momentum after the first step, and J-BOND's anchor something to follow."""
    recorder = Recorder()
    trainer = make_trainer(tmp_path, reward=Later(0, 3), max_steps=5, callbacks=[recorder])
    recorder.trainer = trainer
    trainer.train()
    policy, anchor = zip(*recorder.seen, strict=True)
    for seen in (policy, anchor):
        for step in (1, 2, 4):
            assert_same(seen[step], seen[step - 1])
        assert any(not torch.equal(seen[3][name], seen[2][name]) for name in seen[3])
    assert [line["frac_steps_without_signal"] for line in metrics(tmp_path)] == [0.0, 1.0, 1.0, 0.0, 1.0]


def test_an_anchor_that_is_refreshed_is_refreshed_all_the_same(tmp_path: Path) -> None:
    """What it takes on is what the policy learnt in the steps before."""
    settings = {"method": "bond", "n": 2, "num_reference_samples": 3, "anchor_refresh_steps": 2}
    recorder = Recorder()
    trainer = make_trainer(tmp_path, reward=Later(0), max_steps=2, callbacks=[recorder], **settings)
    recorder.trainer = trainer
    start = {n: w.clone() for n, w in trainer.anchor.weights().items()}
    trainer.train()
    (_, first), (policy, second) = recorder.seen
    assert_same(first, start)
    assert_same(second, {name: policy[name] for name in second})


def test_the_share_of_prompts_whose_rewards_are_equal_is_counted_over_all_their_draws(tmp_path: Path) -> None:
    """One of the four prompts of a step has a reward that varies; one more failed throughout."""

    def by_prompt(prompt_id_number: list[int], completion_ids: list[list[int]], **columns: Any) -> Any:
        varied = goodness(completion_ids)
        kinds = {0: lambda v: v, 1: lambda v: None}
        return [kinds.get(i, lambda v: 0.7)(v) for i, v in zip(prompt_id_number, varied, strict=True)]

    prompts = [replace(p, columns={"prompt_id_number": i}) for i, p in enumerate(PROMPTS[:4])]
    trainer = make_trainer(tmp_path, reward=by_prompt, prompts=prompts, max_steps=1)
    trainer.train()
    (line,) = metrics(tmp_path)
    assert line["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert line["frac_steps_without_signal"] == 0.0


def test_the_sums_are_those_of_the_whole_run_after_a_resume(tmp_path: Path) -> None:
    """A run that learnt something before its checkpoint is no error, one that never did is."""
    for telling, folder in (((0,), "some"), ((), "none")):
        where = tmp_path / folder
        first = make_trainer(where, reward=Later(*telling), save_strategy="steps", save_steps=2)
        first.add_callback(StopAfter(2))
        first.add_callback(_Interrupted())
        first.train()
        resumed = make_trainer(where, reward=Later(), save_strategy="steps", save_steps=2)
        if telling:
            resumed.train(resume_from_checkpoint=True)
        else:
            with pytest.raises(RewardError, match="none of the 4 steps moved the policy"):
                resumed.train(resume_from_checkpoint=True)


class _Interrupted(TrainerCallback):
    """As by Ctrl-C."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), SIGINT)


def counting() -> Signal:
    return Signal(JBOND(), StopCleanly())


def test_steps_whose_rewards_tie_are_an_error_beside_steps_that_lost_prompts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """But steps of lost prompts alone, or an interrupted training, are told of at most."""
    signal = counting()
    signal.lost = 2
    signal.check()
    assert "none of the 2 steps moved the policy, which is as it was" in capsys.readouterr().err
    signal.still = 3
    with pytest.raises(
        RewardError, match=r"none of the 5 steps.*apart in 3 of them, and in 2 prompts were lost"
    ):
        signal.check()
    signal.stopper.stopped = True
    signal.check()


def test_a_step_that_failed_is_not_counted_and_another_training_counts_anew() -> None:
    signal, spent = counting(), Spent()
    whole = LastWholeStep(spent, signal)
    signal.still, signal._in_a_row, spent.losses = 3, 2, 3
    state: Any = SimpleNamespace(global_step=3, num_input_tokens_seen=7, stateful_callbacks={})
    ignored: Any = None
    whole.on_step_end(ignored, state, ignored)
    signal.lost, signal._in_a_row, spent.losses = 1, 0, 4
    whole.go_back(state)
    assert (signal.still, signal.lost, signal._in_a_row, spent.losses) == (3, 0, 2, 3)
    state.stateful_callbacks["Signal"] = signal.state()
    again = counting()
    again.on_train_begin(ignored, state, ignored)
    assert (again.still, again._in_a_row) == (3, 2)
    state.global_step = 0
    again.on_train_begin(ignored, state, ignored)
    assert (again.still, again._in_a_row) == (0, 0)


def test_with_float16s_scaler_a_step_without_signal_is_none_either(tmp_path: Path) -> None:
    """torch's scaler refuses a step without gradients; here on the CPU, where it works as on a GPU."""
    recorder = Recorder()
    trainer = make_trainer(tmp_path, reward=Later(1, 3), max_steps=5, callbacks=[recorder])
    recorder.trainer = trainer
    before = weights(trainer.model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.accelerator.scaler, trainer.accelerator.native_amp = scaler, True
    trainer.accelerator.state._mixed_precision = "fp16"
    trainer.descent.scaler = resting_scaler(trainer.accelerator, trainer.signal)
    try:
        trainer.train()
    finally:
        trainer.accelerator.state._mixed_precision = "no"
    policy = [seen for seen, _ in recorder.seen]
    assert_same(policy[0], before)
    assert_same(policy[2], policy[1])
    assert_same(policy[4], policy[3])
    assert any(not torch.equal(policy[1][name], policy[0][name]) for name in before)
    assert any(not torch.equal(policy[3][name], policy[2][name]) for name in before)


# --- Rewards of two values


def ends(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(ids[-1] == END) for ids in completion_ids]


@pytest.mark.parametrize(
    ("settings", "reward", "said"),
    [({}, ends, 1), ({"quantile_estimator": "tie_aware"}, ends, 0), ({}, goodness, 0)],
    ids=["binary", "binary, tie_aware", "many values"],
)
def test_jbond_says_once_that_two_rewards_are_not_what_its_estimator_is_for(
    settings: dict[str, Any], reward: Any, said: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tmp_path, reward=reward, max_steps=12, **settings).train()
    assert capsys.readouterr().err.count("quantile_estimator=tie_aware reaches it") == said


# --- Stored groups


def test_methods_on_stored_groups_say_how_many_carry_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFT compares the first n of a group: where those tie, the rest of it tells nothing."""
    groups = stored_groups(4)
    groups[0].rewards = [1.0, 1.0, 1.0, 1.0]
    groups[1].rewards = [1.0, 1.0, 0.0, 2.0]
    for method, count in (("sft_bon", 4), ("bonbon", 5), ("regression", 5)):
        make_trainer(tmp_path, method=method, n=2, groups=groups)
        assert f"groups: {count} of 6 carry signal" in capsys.readouterr().err
    groups[1].rewards = [None, None, None, 1.0]
    with pytest.raises(DataError, match="groups: all rewards of each prompt are equal"):
        make_trainer(tmp_path, method="sft_bon", n=2, groups=groups[:2])
    groups[1].rewards = [1.0, 1.0, 0.0, 2.0]
    with pytest.raises(DataError, match="in none of them do the rewards that SFTBoN compares differ"):
        make_trainer(tmp_path, method="sft_bon", n=2, groups=groups[:2])


def test_a_stored_step_without_signal_moves_nothing(tmp_path: Path) -> None:
    """Three groups that tie and three that do not, one per step."""
    groups = stored_groups(4)
    for group in groups[:3]:
        group.rewards = [0.0] * 4
    trainer = make_trainer(
        tmp_path,
        method="sft_bon",
        n=4,
        groups=groups,
        per_device_train_batch_size=1,
        max_steps=6,
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    still = [line["frac_steps_without_signal"] for line in lines if "loss" in line]
    assert sorted(still) == [0.0] * 3 + [1.0] * 3
    assert all(line["grad_norm"] == 0 for line in lines if line.get("frac_steps_without_signal") == 1.0)
