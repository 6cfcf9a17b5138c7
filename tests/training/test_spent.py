"""spent.json: what a run drew and trained on, counted by hand beside it, and the limit of seconds."""

import json
from pathlib import Path
from typing import Any

import pytest

from nonpareil.errors import ConfigError
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    make_trainer,
    metrics,
    slow_goodness,
    stored_groups,
)

KEYS = ["completions_drawn", "tokens_drawn", "tokens_trained", "seconds", "steps", "peak_memory_bytes"]
KINDS: dict[str, tuple[dict[str, Any], bool, int]] = {
    "jbond": ({}, False, 3),
    "bond": ({"n": 2, "num_generations": 2, "num_reference_samples": 3}, False, 5),
    "vbon": ({"n": 2, "num_generations": 2, "num_reference_samples": 3, "num_iterations": 2}, False, 5),
    "vbon, stored": ({"n": 2, "num_generations": 2}, True, 2),
    "rloo": ({"num_generations": 3}, False, 3),
    "sft_bon": ({"n": 3}, True, 0),
    "bonbon": ({"n": 2}, True, 0),
    "regression": ({"n": 2}, True, 0),
}


def spent(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "spent.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_are_those_counted_by_hand(kind: str, tmp_path: Path) -> None:
    settings, stored, a_prompt = KINDS[kind]
    trainer = make_trainer(
        tmp_path,
        method=kind.split(",")[0],
        groups=stored_groups(4) if stored else None,
        max_steps=4,
        per_device_train_batch_size=3,
        **settings,
    )
    draws, trained = [], []
    draw, accumulate = trainer.step_sampler.draw, trainer.accumulator.step

    def seen_draw(*args: Any) -> Any:
        draws.append(draw(*args))
        return draws[-1]

    def seen_step(model: Any, drawn: Any, targets: Any, *rest: Any) -> Any:
        for i, group in enumerate(drawn.groups):
            wanted = [*targets.train_policy[i].tolist(), *targets.train_anchor[i].tolist()]
            lengths = [len(group.prompt_token_ids) + len(ids) for ids in group.completion_token_ids]
            trained.extend(length for length, want in zip(lengths, wanted, strict=True) if want)
        return accumulate(model, drawn, targets, *rest)

    trainer.step_sampler.draw, trainer.accumulator.step = seen_draw, seen_step
    trainer.train()
    sums = spent(tmp_path)
    fresh = [
        len(group.prompt_token_ids) + len(ids)
        for drawn in draws
        for group in drawn.groups
        for ids in group.completion_token_ids[:a_prompt]
    ]
    iterations = settings.get("num_iterations", 1)
    assert sorted(sums) == sorted(KEYS)
    assert len(draws) == 4 // iterations
    assert sums["completions_drawn"] == len(fresh) == 4 // iterations * 3 * a_prompt
    assert sums["tokens_drawn"] == sum(fresh) == metrics(tmp_path)[-1]["num_tokens"]
    assert sums["tokens_trained"] == sum(trained) > 0
    assert sums["steps"] == 4
    assert 0 < sums["seconds"] < 300
    assert sums["peak_memory_bytes"] > 10**7


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, callbacks=[StopAfter(2)], **settings).train()
    half = spent(tmp_path)
    make_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)
    whole = spent(tmp_path)
    assert half["completions_drawn"] == 3 * len(PROMPTS)
    assert whole["completions_drawn"] == 2 * half["completions_drawn"]
    assert whole["tokens_trained"] > half["tokens_trained"] > 0
    assert whole["seconds"] > half["seconds"] > 0
    assert (half["steps"], whole["steps"]) == (2, 4)


def last_line(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_training_loss_after_a_resume_is_that_of_the_whole_run(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    straight = make_trainer(tmp_path / "straight", **settings).train()
    losses = [line["loss"] for line in metrics(tmp_path / "straight")]
    assert straight.training_loss == pytest.approx(sum(losses) / 4, rel=1e-6)

    parts = tmp_path / "parts"
    stopped = make_trainer(parts, callbacks=[StopAfter(3)], **settings).train()
    assert (
        stopped.training_loss
        == last_line(parts)["train_loss"]
        == pytest.approx(sum(losses[:3]) / 3, rel=1e-6)
    )
    resumed = make_trainer(parts, **settings).train(resume_from_checkpoint=True)
    again = make_trainer(parts, **settings).train(resume_from_checkpoint=True)  # nothing is left to train
    assert last_line(parts)["train_loss"] == resumed.metrics["train_loss"] == straight.training_loss
    assert resumed.training_loss == again.training_loss == straight.training_loss


def test_the_rates_are_of_the_steps_that_were_taken(tmp_path: Path) -> None:
    """3 of 5 steps, then the other 2, over the seconds of either; a step has 4 prompts."""
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    for steps, callbacks in ((3, [StopAfter(3)]), (2, [])):
        make_trainer(tmp_path, callbacks=callbacks, **settings).train(resume_from_checkpoint=steps == 2)
        line = last_line(tmp_path)
        assert line["train_steps_per_second"] == pytest.approx(steps / line["train_runtime"], rel=5e-3)
        assert line["train_samples_per_second"] == pytest.approx(4 * steps / line["train_runtime"], rel=5e-3)


def test_a_second_training_has_its_own_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.train()
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 2
    assert last_line(tmp_path)["train_loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_a_run_ends_when_its_seconds_are_used_up_and_those_before_a_resume_count(tmp_path: Path) -> None:
    settings = {"reward": slow_goodness, "max_steps": 50, "max_completion_length": 2}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, max_train_seconds=0.3, **settings)
    trainer.train()
    first = spent(tmp_path)
    assert first["seconds"] >= 0.3
    assert 1 <= first["steps"] <= 2, "each step waits 0.2 seconds for its rewards"
    assert not trainer.stopper.stopped, "as a run that came to its end"
    make_trainer(tmp_path, max_train_seconds=first["seconds"] + 0.1, **settings).train(
        resume_from_checkpoint=True
    )
    assert spent(tmp_path)["steps"] == first["steps"] + 1
    with pytest.raises(ConfigError, match=r"max_train_seconds=0 must be above 0"):
        make_trainer(tmp_path / "none", max_train_seconds=0)
