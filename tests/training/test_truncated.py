"""`mask_truncated_completions`: what the length limit cut has no gradient, and all the rest is as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nonpareil.errors import ConfigError, RewardError
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.trainer import DistillationTrainer
from tests.tiny import END, favour, make_model
from tests.training.conftest import make_trainer, stored_groups, weights
from tests.training.test_methods import FRESH, STORED

LENGTH = 6
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "jbond": ({"jeffreys_weight": 0.5}, False),
    **{name: (settings, False) for name, settings in FRESH.items()},
    **{f"{name}, stored": (settings, True) for name, settings in STORED.items()},
}


def trainer_of(case: str, folder: Path, **changes: Any) -> DistillationTrainer:
    settings, stored = CASES[case]
    groups = stored_groups(5) if stored else None
    return make_trainer(folder, method=case.split(",")[0], groups=groups, **settings, **changes)


def gradient_by_hand(trainer: DistillationTrainer, batch: StepBatch) -> dict[str, Tensor]:
    """Each draw's log-probs times what the loss makes of them, but for the draws that were cut."""
    model, targets = trainer.model, trainer.method.targets(batch.draws)
    trained = torch.cat([targets.train_policy, targets.train_anchor], dim=1)
    values = torch.zeros(*trained.shape, batch.width)
    for row, place in trained.nonzero().tolist():
        group = batch.groups[row]
        one = TokenSequences([group.prompt_token_ids], [group.completion_token_ids[place]])
        own = completion_token_logprobs(model, one, 1.0)[0]
        values = values.index_put((torch.tensor(row), torch.tensor(place), torch.arange(len(own))), own)
    used = trained.any(-1)
    leaf = values.detach().requires_grad_()
    ours, theirs = leaf[:, : batch.num_policy], leaf[:, batch.num_policy :]
    loss = trainer.method.loss(ours, theirs, targets.to(torch.device("cpu")))[used].mean()
    worth = torch.autograd.grad(loss, leaf)[0].clone()
    for row, group in enumerate(batch.groups):
        for place, ids in enumerate(group.completion_token_ids):
            if len(ids) == LENGTH and ids[-1] != END:
                worth[row, place] = 0.0
    model.zero_grad()
    (values * worth).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_the_cases_have_completions_that_were_cut(tmp_path: Path) -> None:
    trainer = trainer_of("bonbon, stored", tmp_path)
    batch = trainer.step_sampler.draw(trainer.train_dataset, step=0)
    targets = trainer.method.targets(batch.draws)
    assert (targets.train_anchor & ~batch.ended()).any()


@pytest.mark.parametrize("case", CASES)
def test_only_completions_that_ended_have_a_gradient(case: str, tmp_path: Path) -> None:
    trainer = trainer_of(case, tmp_path, mask_truncated_completions=True, max_tokens_per_batch=40)
    batch = trainer.step_sampler.draw(trainer.train_dataset, step=0)
    assert 0 < batch.ended().sum() < batch.ended().numel()
    expected = gradient_by_hand(trainer, batch)
    trainer.model.zero_grad()
    trainer.accumulator.step(trainer.model, batch, trainer.method.targets(batch.draws))
    masked = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    torch.testing.assert_close(masked, expected, atol=1e-6, rtol=1e-4)
    targets = trainer.method.targets(batch.draws)
    cut = torch.cat([targets.train_policy, targets.train_anchor], dim=1) & ~batch.ended()
    trainer.model.zero_grad()
    trainer.accumulator.mask_truncated = False
    trainer.accumulator.step(trainer.model, batch, targets)
    moved = [not torch.allclose(w.grad, masked[n], rtol=1e-3) for n, w in trainer.model.named_parameters()]
    assert any(moved) == bool(cut.any())


def test_a_training_of_nothing_but_cut_completions_moves_nothing_and_says_why(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, model=favour(make_model(), END, -50.0), mask_truncated_completions=True, weight_decay=0.5
    )
    before = {name: weight.clone() for name, weight in weights(trainer.model).items()}
    with pytest.raises(RewardError, match="ended by itself; raise max_completion_length, or train on"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer.model).items())


def test_prefixes_of_a_cut_completion_are_whole(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="mask_truncated_completions=true with method=value_distillation: it"
    ):
        make_trainer(
            tmp_path,
            method="value_distillation",
            groups=stored_groups(2),
            credits={},
            mask_truncated_completions=True,
        )
