"""A step is all of its prompts: how they are split into batches changes no number."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nonpareil.maths.quantiles import two_sample_log_quantile
from nonpareil.training.trainer import DistillationTrainer
from tests.tiny import prompts_of
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
from tests.training.test_methods import FRESH, STORED
from tests.training.test_spent import spent
from tests.training.test_step import GAMMA, TEMPERATURE, W, loss_by_hand, sequence_logprob, some_fail

IDS = [*(p.token_ids for p in PROMPTS), [1, 11], [1, 13, 9], [1, 14], [1, 10, 10], [1, 15, 7]]
ELEVEN = prompts_of(*IDS)
SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8)]
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "jbond": ({"jeffreys_weight": 0.5}, False),
    **{name: (settings, False) for name, settings in FRESH.items()},
    **{f"{name}, stored": (settings, True) for name, settings in STORED.items()},
}


def split_trainer(folder: Path, split: tuple[int, int], **settings: Any) -> DistillationTrainer:
    """One whose epoch is a step of eight prompts and one of three."""
    size, accumulated = split
    whole = {"prompts": ELEVEN, "reward": some_fail, "max_steps": 2, "temperature": TEMPERATURE, **settings}
    return make_trainer(
        folder, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, **whole
    )


def counted(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in spent(folder).items() if k not in ("seconds", "peak_memory_bytes")}


@pytest.mark.parametrize("case", CASES)
def test_every_split_of_a_step_trains_the_same(case: str, tmp_path: Path) -> None:
    """To the bit, some rewards failing: the last step's batches are 3 of 4, 2 and 1 of 2, and three of 1."""
    settings, stored = CASES[case]
    groups = stored_groups(5, TEMPERATURE, some_fail, ELEVEN) if stored else None
    ends, lines, rows, sums = [], [], [], []
    for split in SPLITS if case == "jbond" else (SPLITS[0], SPLITS[-1]):
        folder = tmp_path / str(split[0])
        trainer = split_trainer(folder, split, method=case.split(",")[0], groups=groups, **settings)
        trainer.train()
        ends.append(weights(trainer.model))
        lines.append(metrics(folder))
        sums.append(counted(folder))
        rows.append(pq.read_table(folder / "completions" / "completions_00002.parquet").to_pylist())
    assert any(not torch.equal(value, weights(ending_model())[name]) for name, value in ends[0].items())
    assert len(lines[0]) == 2
    assert 0 < lines[0][0]["rewards/failed_ratio"] < 1
    for end, logged, drawn, sum_ in zip(ends[1:], lines[1:], rows[1:], sums[1:], strict=True):
        assert_same(end, ends[0])
        assert logged == lines[0]
        assert drawn == rows[0]
        assert sum_ == sums[0]


def test_one_prompt_a_batch_has_the_baseline_of_the_step(tmp_path: Path) -> None:
    """J-BOND's gradient and advantages, written out over the usable prompts of six batches of one."""
    trainer = split_trainer(
        tmp_path,
        (1, 6),
        prompts=PROMPTS,
        jeffreys_weight=W,
        kl_coef=GAMMA,
        max_steps=1,
        **{"optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 0, "lr_scheduler_type": "constant"},
    )
    trainer.anchor.module.load_state_dict(ending_model(seed=1).state_dict())
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    loss = loss_by_hand(trainer.model, trainer.anchor.module, batch)
    trainer.model.zero_grad()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    returns: dict[str, float] = {}
    with torch.no_grad():
        for group in batch.groups:
            if None not in group.rewards:
                own, rewards = group.completion_token_ids[0], torch.tensor(group.rewards)
                models = (trainer.model, trainer.anchor.module)
                policy, anchor = (sequence_logprob(m, group.prompt_token_ids, own) for m in models)
                log_p = two_sample_log_quantile(rewards[:1], rewards[None, 1:])[0]
                returns[group.prompt] = (log_p - (policy - anchor)).item()
    assert 3 <= len(returns) < len(PROMPTS), "some rewards fail"
    trainer.model.zero_grad()
    before = weights(trainer.model)
    trainer.train()
    (line,) = metrics(tmp_path)
    assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)
    after = weights(trainer.model)
    moved = {name: (before[name] - after[name]) / 1e-2 for name in before}
    assert_same(moved, gradients, rtol=1e-2, atol=1e-4)
    rows = pq.read_table(tmp_path / "completions" / "completions_00001.parquet").to_pylist()
    found = {row["prompt"]: row["advantage"] for row in rows if row["drawn_by"] == "policy"}
    for prompt, own in returns.items():
        others = [value for other, value in returns.items() if other != prompt]
        assert found[prompt] == pytest.approx(own - sum(others) / len(others), abs=1e-4)
    assert max(map(abs, found.values())) > 0.1


def test_a_step_is_drawn_and_scored_at_once(tmp_path: Path) -> None:
    trainer = split_trainer(tmp_path, (1, 8), max_steps=3)
    seen, draw = [], trainer.step_sampler.draw

    def counted_draw(prompts: Any, step: int) -> Any:
        seen.append((step, len(prompts)))
        return draw(prompts, step)

    trainer.step_sampler.draw = counted_draw
    trainer.train()
    assert seen == [(0, 8), (1, 3), (2, 8)]


@pytest.mark.parametrize("order", ["random", "sequential"])
@pytest.mark.parametrize("split", [(8, 1), (2, 4)])
def test_what_fills_no_step_is_left_out_however_it_is_split(
    split: tuple[int, int], order: str, tmp_path: Path
) -> None:
    settings = {"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 2}
    trainer = split_trainer(tmp_path, split, train_sampling_strategy=order, **settings)
    trainer.train()
    assert trainer.planned == trainer.state.global_step == 2
    files = sorted((tmp_path / "completions").iterdir())
    read = [pq.read_table(file, columns=["prompt"]).column(0).to_pylist() for file in files]
    first, second = (list(dict.fromkeys(prompts)) for prompts in read)
    assert len(first) == len(second) == 8
    in_order = [prompt.prompt for prompt in ELEVEN[:8]]
    assert (first == in_order) == (second == in_order) == (order == "sequential")


@pytest.mark.parametrize("settings", [{}, {"method": "vbon", **FRESH["vbon, ppo"]}])
def test_a_run_of_several_batches_a_step_is_taken_up_to_the_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """After the first of two steps of an epoch, or the second of two on the same draws."""
    every = settings.get("num_iterations", 1)
    settings = {**settings, "save_strategy": "steps", "save_steps": every, "max_steps": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    straight = split_trainer(whole, (2, 2), **settings)
    straight.train()
    split_trainer(parts, (2, 2), callbacks=[StopAfter(every)], **settings).train()
    again = split_trainer(parts, (2, 2), **settings)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again.model), weights(straight.model))
    assert metrics(parts) == metrics(whole)
    assert counted(parts) == counted(whole)
