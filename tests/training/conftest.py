"""A trainer of a tiny policy on real prompts, and rewards; also imported by the subprocess of the Ctrl-C test."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback

from nonpareil.credits import Credits, CreditsByPrompt
from nonpareil.engines.sampling import sample_keys
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.methods import build
from nonpareil.methods.base import Method
from nonpareil.models.candidates import choose_candidates
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards import load_rewards
from nonpareil.settings import settings_of
from nonpareil.training import DistillationConfig, DistillationTrainer
from nonpareil.training.step.batch import score_groups
from tests.tiny import GOOD, favour, make_model, make_tokenizer, prompts_of

PROMPTS = prompts_of([1, 7, 8], [1, 7], [1, 9, 8, 7, 12], [1, 17], [1, 16, 6], [1, 8, 8, 8])
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit tests must add in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def goodness(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """How often "good" is said, and a little for length, so that ties are rare."""
    return [ids.count(GOOD) + 0.1 * len(ids) + 0.01 * ids[0] for ids in completion_ids]


def slow_goodness(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    time.sleep(0.2)
    return goodness(completion_ids)


def ending_model(seed: int = 0) -> PreTrainedModel:
    """One that draws the end token often."""
    return favour(make_model(seed=seed), 2, 1.0)


def make_trainer(
    output_dir: Path,
    *,
    model: PreTrainedModel | None = None,
    reward: Any = goodness,
    prompts: list[Prompt] | None = None,
    tokenizer: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    eval_dataset: list[Prompt] | None = None,
    groups: list[Group] | None = None,
    credits: CreditsByPrompt | None = None,
    peft_config: Any = None,
    **changes: Any,
) -> DistillationTrainer:
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_completion_length": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 7,
    }
    if changes.get("method", "jbond") == "jbond":
        settings |= {"anchor_ema_rate": 0.1, "kl_coef": 0.1}
    settings |= changes
    known = settings_of(DistillationConfig)
    of_method = {name: settings.pop(name) for name in [*settings] if name not in known}
    if not isinstance(settings.get("method"), Method):
        settings["method"] = build(settings.get("method", "jbond"), of_method, stored=groups is not None)
    return DistillationTrainer(
        model=model or ending_model(),
        reward_funcs=reward,
        args=DistillationConfig(**settings),
        train_dataset=None if groups else PROMPTS if prompts is None else prompts,
        eval_dataset=eval_dataset,
        processing_class=tokenizer or make_tokenizer(),
        callbacks=callbacks,
        peft_config=peft_config,
        groups=groups,
        credits=credits,
    )


def stored_groups(
    m: int, temperature: float = 1.0, reward: Any = goodness, prompts: list[Prompt] = PROMPTS
) -> list[Group]:
    """Scored groups of the model that every trainer here starts from."""
    engine = TransformersEngine(ending_model(), make_tokenizer())
    draws = engine.draw(prompts, m, SamplingParams(6, temperature, seed=3))
    groups = [Group.of(prompt, drawn) for prompt, drawn in zip(prompts, draws, strict=True)]
    score_groups(groups, load_rewards(reward))
    return groups


def stored_credits(
    groups: list[Group], temperature: float = 1.0, *, likeliest: int = 4, from_tail: int = 3
) -> dict[str, list[Credits | None]]:
    """Of a value that likes "good", and a little each token's number; the value of a prefix is made up too."""
    found: dict[str, list[Credits | None]] = {}
    for group in groups:
        ids = group.completion_token_ids
        sequences = TokenSequences([group.prompt_token_ids] * len(ids), ids)
        keys = sample_keys(group.prompt_id, range(len(ids)), seed=0)
        settings = {"likeliest": likeliest, "from_tail": from_tail, "temperature": temperature}
        chosen = choose_candidates(ending_model(), sequences, keys, **settings)
        found[group.prompt_id] = []
        for j, completion in enumerate(ids):
            t = len(completion)
            token_ids, weights = chosen.token_ids[j, :t].int().numpy(), chosen.weights[j, :t].numpy()
            advantages = 0.8 * (token_ids == GOOD) + 0.03 * (token_ids - 9)
            prefix = 0.1 * np.arange(t, dtype=np.float32) * (1 if j % 2 else -1)
            found[group.prompt_id].append(Credits(token_ids, weights, advantages.astype(np.float32), prefix))
    return found


class StopAfter(TrainerCallback):
    """Save and stop after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of the steps, without what depends on the clock."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines if "loss" in line]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, value in ours.items():
        if tolerance:
            torch.testing.assert_close(value, theirs[name], **tolerance)
        else:
            assert torch.equal(value, theirs[name]), name
