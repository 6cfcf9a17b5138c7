"""A step whose passes share rows among a prompt's completions is the step with a row each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nonpareil.models.adapters import plain_model
from nonpareil.training import DistillationTrainer
from nonpareil.training.actors import base
from nonpareil.training.step import accumulate
from tests.tiny import prompts_of
from tests.training.conftest import assert_same, make_trainer, metrics, stored_groups
from tests.training.test_lora import LORA, moved
from tests.training.test_spent import spent

LONG = prompts_of(*[[1, *[6 + (i * j) % 13 for j in range(36 + 3 * i)]] for i in range(1, 7)])
CASES: dict[str, dict[str, Any]] = {
    "jbond": {},
    "rloo": {"method": "rloo", "num_generations": 5},
    "regression": {"method": "regression", "n": 2, "stored": 6},
    "bonbon": {"method": "bonbon", "n": 6, "stored": 6},
    "lora": {**LORA, "method": "rloo", "num_generations": 4},
    "checkpointing": {"method": "rloo", "num_generations": 4, "gradient_checkpointing": True},
    "tight": {"method": "rloo", "num_generations": 5, "max_tokens_per_batch": 130},
}


def long_trainer(folder: Path, stored: int = 0, **settings: Any) -> DistillationTrainer:
    groups = stored_groups(stored, prompts=LONG) if stored else None
    settings = {"per_device_train_batch_size": len(LONG), "max_steps": 2, **settings}
    return make_trainer(folder, prompts=LONG, groups=groups, **settings)


def counted_step(trainer: DistillationTrainer) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """A step's loss and gradients, and the tokens of each pass that was made for them."""
    passes: list[int] = []
    trainer.current_gradient_accumulation_steps = trainer.state.logging_steps = 1
    embeddings = plain_model(trainer.model).get_input_embeddings()
    hook = embeddings.register_forward_hook(
        lambda module, inputs, output: passes.append(inputs[0].numel()) if torch.is_grad_enabled() else None
    )
    try:
        loss = trainer.training_step(trainer.model, LONG)
    finally:
        hook.remove()
    named = trainer.model.named_parameters()
    return loss, {n: p.grad.clone() for n, p in named if p.grad is not None}, passes


@pytest.fixture
def row_each(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask for the usual rows from here on."""

    def usual() -> None:
        for module in (accumulate, base):
            monkeypatch.setattr(module, "per_row", lambda *_: 1)

    return usual


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_a_row_each(case: str, tmp_path: Path, row_each: Any) -> None:
    trainers = [long_trainer(tmp_path / name, **CASES[case]) for name in ("shared", "separate")]
    for trainer in trainers if case == "lora" else ():
        moved(trainer)
    loss, gradients, passes = counted_step(trainers[0])
    row_each()
    separate_loss, separate, separate_passes = counted_step(trainers[1])
    torch.testing.assert_close(loss, separate_loss, rtol=1e-5, atol=1e-6)
    largest = max(gradient.abs().max().item() for gradient in separate.values())
    assert_same(gradients, separate, rtol=1e-4, atol=2e-5 * max(1.0, largest))  # rounding is of their size
    assert sum(gradient.abs().sum() for gradient in separate.values()) > 0.1
    assert sum(passes) < 0.8 * sum(separate_passes)
    if case == "tight":
        assert max(passes) <= 130
        assert len(passes) == 3


def test_log_probs_of_the_anchor_are_those_of_a_row_each(tmp_path: Path, row_each: Any) -> None:
    for name, settings in {"plain": {}, "lora": LORA}.items():
        trainer = long_trainer(tmp_path / name, method="rloo", num_generations=5, **settings)
        if name == "lora":
            moved(trainer)
        batch = trainer.step_sampler.draw(LONG, step=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "per_row", lambda *_: 1)
            separate = trainer.step_sampler.draw(LONG, step=0)
        assert batch.draws.log_ratio.abs().max() > (0.1 if name == "lora" else -1)
        torch.testing.assert_close(
            batch.draws.anchor_logprobs_of_policy,
            separate.draws.anchor_logprobs_of_policy,
            rtol=1e-5,
            atol=1e-5,
        )


def test_whole_trainings_agree_and_count_the_tokens_they_passed(tmp_path: Path, row_each: Any) -> None:
    shared = long_trainer(tmp_path / "shared", method="rloo", num_generations=5)
    shared.train()
    row_each()
    separate = long_trainer(tmp_path / "separate", method="rloo", num_generations=5)
    separate.train()
    for ours, theirs in zip(metrics(tmp_path / "shared"), metrics(tmp_path / "separate"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    prompts = 2 * sum(len(prompt.token_ids) for prompt in LONG)  # of two steps
    sums = [spent(tmp_path / name) for name in ("shared", "separate")]
    assert sums[1]["tokens_trained"] - sums[0]["tokens_trained"] == 4 * prompts, "each once, not five times"
    assert sums[0]["tokens_drawn"] == sums[1]["tokens_drawn"]


def test_short_prompts_have_a_row_each(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="rloo", num_generations=5)
    seen = accumulate.Accumulator._plan
    plans = []

    def plan(*arguments: Any) -> Any:
        plans.append(seen(*arguments))
        return plans[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accumulate.Accumulator, "_plan", plan)
        trainer.train()
    assert len(plans) == 4
    assert {each.per_row for each in plans} == {1}
