"""NaN and infinities in a training: one bad prompt is left out and counted, a policy of none is never kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerCallback

from nonpareil.errors import DataError, NotFiniteError, RewardError
from nonpareil.models.loading import load_policy
from nonpareil.training.checkpoints.files import checkpoints_in
from nonpareil.training.step.batch import reward_tensor
from nonpareil.training.step.not_finite import PATIENCE
from nonpareil.training.stored import check_stored
from tests.tiny import GOOD, make_tokenizer, prompts_of
from tests.training.conftest import (
    PROMPTS,
    assert_same,
    ending_model,
    goodness,
    make_trainer,
    metrics,
    stored_groups,
    weights,
)

NAN, INF = float("nan"), float("inf")
RLOO: dict[str, Any] = {"method": "rloo", "num_generations": 3}
SGD = {"optim": "sgd", "learning_rate": 1e-2}


def one_extreme(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """`goodness`; of the prompt with id 2 finite rewards whose advantages are not, in float32."""
    return [
        (3e38 if i % 2 else -3e38) if prompt == "prompt 2" else value
        for i, (prompt, value) in enumerate(zip(prompts, goodness(completion_ids), strict=True))
    ]


def steep(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """As `one_extreme`, with a finite loss: the gradient's norm alone is beyond float32."""
    return [value / 3e8 if abs(value) > 1e9 else value for value in one_extreme(prompts, completion_ids)]


def gradient_of(trainer: Any, prompts: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.logging_steps = 1
    loss = trainer.training_step(trainer.model, prompts)
    return float(loss), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def logged(trainer: Any, name: str) -> float:
    (value,) = trainer._metrics[name]
    return value


@pytest.mark.parametrize("reward", [one_extreme, steep])
def test_a_prompt_whose_loss_or_gradient_is_no_number_is_as_if_it_were_not_there(
    reward: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path / "a", reward=reward, **RLOO)
    loss, gradient = gradient_of(trainer, PROMPTS)
    assert logged(trainer, "dropped/non_finite") == 1
    others = make_trainer(tmp_path / "b", reward=goodness, **RLOO)
    expected, theirs = gradient_of(others, [p for p in PROMPTS if p.prompt != "prompt 2"])
    assert logged(others, "dropped/non_finite") == 0
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss != 0
    assert_same(gradient, theirs, rtol=1e-4, atol=1e-6)
    rewards = "the loss, of rewards from -3e+38 to 3e+38,"
    what = rewards if reward is one_extreme else "the gradient, of a loss of 2.24579e+30,"
    said = capsys.readouterr().err
    assert f"step 1, prompt p2-5: {what} is NaN or infinite; it is left out of the step" in said
    gradient_of(trainer, PROMPTS)
    assert "left out" not in capsys.readouterr().err, "told once"


def without_good() -> PreTrainedModel:
    """A policy that never draws "good"."""
    model = ending_model()
    model.get_output_embeddings().bias.data[GOOD] = -INF
    return model


def test_log_probs_of_the_policy_that_are_none_drop_their_prompt_alone(tmp_path: Path) -> None:
    """Stored completions go through one padded pass with those of the prompt that holds the bad token."""
    groups = stored_groups(4)
    bad = [17 in [*g.prompt_token_ids, *(t for ids in g.completion_token_ids for t in ids)] for g in groups]
    assert 0 < sum(bad) < len(bad)
    settings: dict[str, Any] = {"method": "sft_bon", "n": 4, "imitate": "all"}
    model = ending_model()
    model.get_input_embeddings().weight.data[17] = NAN
    trainer = make_trainer(tmp_path / "a", model=model, groups=groups, **settings)
    loss, gradient = gradient_of(trainer, PROMPTS)
    assert logged(trainer, "dropped/non_finite") == sum(bad)
    kept = [group for group, is_bad in zip(groups, bad, strict=True) if not is_bad]
    others = make_trainer(tmp_path / "b", model=ending_model(), groups=kept, **settings)
    expected, theirs = gradient_of(others, [p for p, is_bad in zip(PROMPTS, bad, strict=True) if not is_bad])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_same(gradient, theirs, rtol=1e-4, atol=1e-6)


def test_an_anchor_without_numbers_for_one_prompt_drops_it_before_it_is_scored(tmp_path: Path) -> None:
    scored: list[str] = []

    def seen(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        scored.extend(prompts)
        return goodness(completion_ids)

    prompts = [*PROMPTS, *prompts_of([1, GOOD, 7])]
    trainer = make_trainer(tmp_path / "a", model=without_good(), reward=seen)
    trainer.anchor.module.get_input_embeddings().weight.data[GOOD] = NAN
    scored.clear()
    _, gradient = gradient_of(trainer, prompts[1:])
    assert logged(trainer, "dropped/non_finite") == 1
    assert set(scored) == {p.prompt for p in PROMPTS[1:]}
    _, theirs = gradient_of(make_trainer(tmp_path / "b", model=without_good()), PROMPTS[1:])
    # Log-probs of draws depend in their last bits on which prompts were drawn for beside them.
    assert_same(gradient, theirs, rtol=1e-4, atol=1e-6)


def test_a_step_of_which_nothing_is_left_moves_nothing_and_has_no_loss(tmp_path: Path) -> None:
    def extreme(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [3e38 if i % 2 else -3e38 for i in range(len(completion_ids))]

    trainer = make_trainer(tmp_path / "few", reward=extreme, max_steps=PATIENCE - 1, **RLOO)
    before = weights(trainer.model)
    trainer.train()
    trainer.save_finished()
    assert_same(weights(trainer.model), before)
    lines = [json.loads(line) for line in (tmp_path / "few" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [None] * (PATIENCE - 1)
    assert lines[0]["dropped/non_finite"] == 4
    assert lines[0]["reward"] == pytest.approx(0, abs=1e23)
    assert lines[0]["reward_std"] == pytest.approx(3e38)
    assert lines[-1]["train_loss"] is None
    with pytest.raises(
        NotFiniteError, match=rf"step {PATIENCE}: for the 5th step in a row most prompts are left"
    ):
        make_trainer(tmp_path / "many", reward=extreme, max_steps=9, **RLOO).train()


class Breaks(TrainerCallback):
    """An update gone wrong, after one step."""

    def __init__(self, step: int, value: float):
        self.step, self.value = step, value

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            for parameter in kwargs["model"].parameters():
                parameter.data.mul_(self.value)


@pytest.mark.parametrize("value", [1e15, NAN])
def test_a_diverged_run_ends_with_its_last_good_checkpoint(value: float, tmp_path: Path) -> None:
    """Step 3 leaves weights that are none, or, though each is finite, give no numbers; they are never kept."""
    trainer = make_trainer(tmp_path, callbacks=[Breaks(3, value)], save_strategy="steps", save_steps=2)
    with pytest.raises(NotFiniteError) as caught:
        trainer.train()
    assert f"The last good checkpoint is {tmp_path}/checkpoint-2: resume it" in str(caught.value)
    assert "step 4: the model gives no numbers for any of the step's 2 prompts (prompt p" in str(caught.value)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in kept.values())
    with pytest.raises(NotFiniteError, match=r"weights are NaN|log-probs of a completion are NaN"):
        trainer.save_finished()
    assert not (tmp_path / "model.safetensors").exists()
    make_tokenizer().save_pretrained(tmp_path / "checkpoint-2")
    load_policy(str(tmp_path / "checkpoint-2"))
    again = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


def test_a_broken_last_step_is_no_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Breaks(2, 1e15)], save_strategy="steps", save_steps=1)
    with pytest.raises(NotFiniteError, match=r"^step 2: the policy's log-probs .*checkpoint-1: resume"):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-1"]


def test_evaluation_amid_a_training_is_of_numbers(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, eval_dataset=PROMPTS[:2], callbacks=[Breaks(1, NAN)], eval_strategy="steps"
    )
    with pytest.raises(
        NotFiniteError, match=r"evaluation: prompt p0-3: the log-prob of the policy's draws, completion"
    ):
        trainer.train()


def test_stored_log_probs_that_are_none_are_refused(tmp_path: Path) -> None:
    groups = stored_groups(4)
    groups[1].logprobs[2][0] = NAN
    trainer = make_trainer(tmp_path, groups=stored_groups(4), method="sft_bon", n=2)
    with pytest.raises(DataError, match=r"'p1-2', completion 2, token 0 .* log-prob"):
        check_stored(groups, trainer.method)


def test_rewards_that_float32_would_tie_do_not(tmp_path: Path) -> None:
    """1e8 + 0.1 i: the winner is the one of the highest i, whatever the method compares."""

    def close(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [1e8 + 0.1 * value for value in goodness(completion_ids)]

    trainers = [make_trainer(tmp_path / r.__name__, reward=r) for r in (close, goodness)]
    numbers = [trainer.step_sampler.draw(PROMPTS, step=0).draws for trainer in trainers]
    assert numbers[0].anchor_rewards.dtype == torch.float64
    targets = [trainer.method.targets(each) for trainer, each in zip(trainers, numbers, strict=True)]
    assert torch.equal(targets[0].train_anchor, targets[1].train_anchor)
    torch.testing.assert_close(targets[0].advantages, targets[1].advantages)
    gradients = [gradient_of(trainer, PROMPTS)[1] for trainer in trainers]
    assert_same(*gradients)
    spread = logged(trainers[0], "reward_std")
    assert spread == pytest.approx(0.1 * logged(trainers[1], "reward_std"), rel=1e-5)
    assert logged(trainers[0], "rewards/close/std") == pytest.approx(spread)
    groups = trainers[0].step_sampler.draw(PROMPTS, step=0).groups
    assert reward_tensor(groups).unique().numel() > reward_tensor(groups).float().unique().numel()


def test_metrics_have_the_count_at_each_step(tmp_path: Path) -> None:
    make_trainer(tmp_path, reward=one_extreme, max_steps=3, num_train_epochs=3, **RLOO, **SGD).train()
    assert {line["dropped/non_finite"] for line in metrics(tmp_path)} == {0.0, 1.0}


def test_weights_under_which_every_sum_overflows_are_named(tmp_path: Path) -> None:
    from nonpareil.rewards import CombinedReward, FunctionReward

    reward = CombinedReward([FunctionReward(goodness)], weights=[1e200])
    with pytest.raises(RewardError, match=r"every reward of step 1 failed; .*weighted sum is no number"):
        make_trainer(tmp_path, reward=reward).train()
