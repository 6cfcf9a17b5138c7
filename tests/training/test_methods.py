"""One step of every method: its loss and gradient against plain forward passes, one unpadded sequence at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nonpareil.methods import METHODS
from nonpareil.methods.base import ScoredDraws, Targets
from nonpareil.methods.credited import CreditedMethod
from nonpareil.records import Group
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.trainer import DistillationTrainer
from tests.methods.every_method import SETTINGS
from tests.tiny import END, make_tokenizer
from tests.training.conftest import (
    PROMPTS,
    assert_same,
    ending_model,
    goodness,
    make_trainer,
    stored_groups,
)

TEMPERATURE = 0.8
M = 5
FRESH: dict[str, dict[str, Any]] = {
    "bond": {"n": 3, "num_generations": 2, "num_reference_samples": 4, "jeffreys_weight": 0.3},
    "bond, all": {
        "n": 2,
        "num_reference_samples": 3,
        "imitate": "all",
        "num_generations": 2,
        "baseline": "prompt",
    },
    "vbon": {"n": 4, "num_generations": 3, "num_reference_samples": 4},
    "vbon, l1": {
        "n": 4,
        "num_generations": 2,
        "num_reference_samples": 3,
        "bound": "l1",
        "quantile_estimator": "harmonic",
    },
    "vbon, ppo": {
        "n": 4,
        "num_generations": 2,
        "num_reference_samples": 3,
        "num_iterations": 2,
        "epsilon": 0.1,
    },
    "regression": {"n": 4, "num_generations": 2, "num_reference_samples": 3},
    "rloo": {"num_generations": 3, "kl_coef": 0.2},
}
STORED: dict[str, dict[str, Any]] = {
    "vbon": {"n": 4, "num_generations": 3},
    "bonbon": {"n": 2, "sft_weight": 0.3},
    "bonbon, dpo": {"n": 4, "contrast": "dpo"},
    "sft_bon": {"n": 4},
    "sft_bon, all": {"n": 3, "imitate": "all"},
    "regression": {"n": 4},
}
CREDITED = {name for name, cls in METHODS.items() if issubclass(cls, CreditedMethod)}
"""Their steps are in `test_credited.py`."""
for name, settings in SETTINGS.items():  # a method that has no case of its own above
    if name not in CREDITED and name not in {case.split(",")[0] for case in ("jbond", *FRESH, *STORED)}:
        (STORED if METHODS[name].stored_groups == "required" else FRESH)[name] = settings


def some_fail(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    values = goodness(completion_ids)
    return [None if ids[0] % 5 == 0 else v for ids, v in zip(completion_ids, values, strict=True)]


PAD_IS_END = {"pad": "</s>", "padding_side": "right"}
CIRCUMSTANCES = pytest.mark.parametrize(
    ("max_tokens_per_batch", "padding", "reward"),
    [
        (1, {}, some_fail),
        pytest.param(40, {}, goodness, marks=pytest.mark.slow),  # each of it is in one of the others
        (40, PAD_IS_END, some_fail),
        (10**6, {}, goodness),
    ],
)


def test_every_method_of_ours_is_among_the_cases() -> None:
    assert {name.split(",")[0] for name in (*FRESH, *STORED)} == set(METHODS) - {"jbond"} - CREDITED


def trainer_of(
    output_dir: Path, case: str, settings: dict[str, Any], groups: list[Group] | None, **changes: Any
) -> DistillationTrainer:
    """One whose policy has left its reference, so that no log-ratio is 0."""
    trainer = make_trainer(
        output_dir,
        method=case.split(",")[0],
        groups=groups,
        model=ending_model(seed=1),
        temperature=TEMPERATURE,
        save_strategy="no",
        **settings,
        **changes,
    )
    if trainer.anchor is not None:
        trainer.anchor.module.load_state_dict(ending_model().state_dict())
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.logging_steps = 1
    return trainer


def one_step(trainer: DistillationTrainer) -> tuple[float, dict[str, Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, PROMPTS)
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters()}


def token_logprobs(model: Any, groups: list[Group]) -> list[list[Tensor]]:
    """Of each completion, by itself."""
    return [[_token_logprobs(model, g.prompt_token_ids, ids) for ids in ids_of(g)] for g in groups]


def _token_logprobs(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0] / TEMPERATURE
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return logits.log_softmax(-1)[rows, torch.tensor(completion)]


def ids_of(group: Group) -> list[list[int]]:
    return group.completion_token_ids


def rectangle(rows: list[list[Tensor]], columns: slice, width: int) -> Tensor:
    """[b, k, t] with zeros behind each end."""
    most = max(len(row) for row in rows)
    padded = torch.zeros(len(rows), most, width)
    for i, row in enumerate(rows):
        for j, values in enumerate(row):
            padded[i, j, : len(values)] = values
    return padded[:, columns]


def numbers_of(batch: StepBatch, policy: list[list[Tensor]], reward: Any) -> ScoredDraws:
    """What the method is to see: everything but the tie breaker worked out anew."""
    groups, k = batch.groups, batch.num_policy
    with torch.no_grad():
        reference = token_logprobs(ending_model(), groups)
    most, width = max(map(len, groups)), 6
    rewards, logprobs = torch.full((len(groups), most), torch.nan), rectangle(reference, slice(None), width)
    for i, group in enumerate(groups):
        values = reward(ids_of(group))
        rewards[i, : len(values)] = torch.tensor([torch.nan if v is None else v for v in values])
    own = rectangle([[t.detach() for t in row] for row in policy], slice(k), width)
    return ScoredDraws(
        policy_rewards=rewards[:, :k],
        anchor_rewards=rewards[:, k:],
        policy_token_logprobs=own,
        completion_mask=own != 0,
        anchor_logprobs_of_policy=logprobs[:, :k].sum(-1),
        anchor_token_logprobs=logprobs[:, k:],
        tie_breaker=batch.draws.tie_breaker,
    )


def mean_loss(trainer: DistillationTrainer, policy: list[list[Tensor]], targets: Targets, k: int) -> Tensor:
    """The method's loss on log-probs that all carry a gradient, averaged over the prompts that take part."""
    losses = trainer.method.loss(
        rectangle(policy, slice(k), 6), rectangle(policy, slice(k, None), 6), targets
    )
    used = targets.train_policy.any(-1) | targets.train_anchor.any(-1)
    assert used.sum() >= 3
    return losses[used].mean()


def gradient(loss: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_by_hand(trainer: DistillationTrainer, reward: Any) -> None:
    """A step of the trainer is the loss on what it drew."""
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    ended = [len(ids) < 6 and ids[-1] == END for group in batch.groups for ids in ids_of(group)]
    assert any(ended)
    assert not all(ended)
    assert max(ids.count(END) for group in batch.groups for ids in ids_of(group)) == 1
    policy = token_logprobs(trainer.model, batch.groups)
    targets = trainer.method.targets(numbers_of(batch, policy, reward))
    by_hand = mean_loss(trainer, policy, targets, batch.num_policy)
    want = gradient(by_hand, trainer.model)
    loss, got = one_step(trainer)
    assert loss == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-5)
    largest = max(g.abs().max() for g in want.values())
    assert largest > 1e-3
    assert_same(got, want, rtol=1e-3, atol=1e-4 * max(1.0, largest.item()))


@CIRCUMSTANCES
@pytest.mark.parametrize("case", FRESH)
def test_on_fresh_draws(
    case: str, reward: Any, max_tokens_per_batch: int, padding: dict[str, str], tmp_path: Path
) -> None:
    trainer = trainer_of(
        tmp_path,
        case,
        FRESH[case],
        None,
        reward=reward,
        tokenizer=make_tokenizer(**padding),
        max_tokens_per_batch=max_tokens_per_batch,
    )
    assert_by_hand(trainer, reward)


@CIRCUMSTANCES
@pytest.mark.parametrize("case", STORED)
def test_on_stored_groups(
    case: str, reward: Any, max_tokens_per_batch: int, padding: dict[str, str], tmp_path: Path
) -> None:
    trainer = trainer_of(
        tmp_path,
        case,
        STORED[case],
        stored_groups(M, TEMPERATURE, reward),
        reward=reward,
        tokenizer=make_tokenizer(**padding),
        max_tokens_per_batch=max_tokens_per_batch,
    )
    assert_by_hand(trainer, reward)
    draws = trainer.method.policy_draws > 0
    assert (trainer.step_sampler.actors is not None) == draws, "no second model where nothing is drawn"


@pytest.mark.parametrize("case", ["vbon", "sft_bon, all", "bonbon", "regression"])
def test_on_stored_groups_of_different_sizes(case: str, tmp_path: Path) -> None:
    groups = stored_groups(M, TEMPERATURE)
    for group, size in zip(groups, (5, 4, 5, 4, 4, 5), strict=True):
        for name in ("completions", "completion_token_ids", "finish_reasons", "logprobs", "rewards"):
            setattr(group, name, getattr(group, name)[:size])
        group.rewards_by_name = {name: values[:size] for name, values in group.rewards_by_name.items()}
    trainer = trainer_of(tmp_path, case, STORED[case], groups)
    assert_by_hand(trainer, goodness)
    assert trainer._metrics["rewards/failed_ratio"] == [0], "a draw that was never made has not failed"


def test_the_second_step_on_the_same_draws_is_clipped_by_the_ratio_to_the_first(tmp_path: Path) -> None:
    """vBoN's PPO: the log-probs of sampling stay those of the policy that drew."""
    trainer = trainer_of(tmp_path, "vbon, ppo", FRESH["vbon, ppo"], None)
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    with torch.no_grad():
        before = token_logprobs(trainer.model, batch.groups)
    targets = trainer.method.targets(numbers_of(batch, before, goodness))
    _, first = one_step(trainer)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter -= 0.05 * first[name]
    trainer.state.global_step = 1
    after = token_logprobs(trainer.model, batch.groups)
    pairs = [pair for x, y in zip(after, before, strict=True) for pair in zip(x[:2], y[:2], strict=True)]
    ratios = torch.cat([(now - then).exp() for now, then in pairs])
    assert (ratios > 1.1).any(), "the clip is reached"
    assert (ratios < 0.9).any()
    by_hand = mean_loss(trainer, after, targets, batch.num_policy)
    want = gradient(by_hand, trainer.model)
    loss, got = one_step(trainer)
    assert loss == pytest.approx(by_hand.item(), rel=1e-4, abs=1e-5)
    assert_same(got, want, rtol=1e-3, atol=1e-3)
