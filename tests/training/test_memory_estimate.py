"""What `--dry_run` says training holds is what the tensors of a real training hold, byte for byte."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from nonpareil.commands.distill.dry_run import memory_estimate
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.models.loading import cast_weights
from nonpareil.training import DistillationTrainer
from tests.tiny import make_model, make_tokenizer
from tests.training.conftest import make_trainer, stored_credits, stored_groups

LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}
FIXED: dict[str, Any] = {"method": "bond", "n": 2, "num_generations": 1, "num_reference_samples": 2}
OFFLINE: dict[str, Any] = {"method": "sft_bon", "n": 2}
CREDITED: dict[str, Any] = {"method": "value_distillation"}


class Gradients(TrainerCallback):
    """Their bytes when they are complete; the trainer drops them after each step."""

    held = 0

    def on_pre_optimizer_step(self, *arguments: Any, model: Any = None, **kwargs: Any) -> None:
        self.held = size(p.grad for p in model.parameters() if p.grad is not None)


def size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(trainer: DistillationTrainer) -> dict[str, int]:
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    anchor = () if trainer.anchor is None else trainer.anchor.weights().values()
    moments = [v for state in trainer.optimizer.state.values() for v in state.values() if v.dim()]
    actors = (
        trainer.step_sampler.actors if trainer.method.policy_draws + trainer.method.anchor_draws else None
    )
    copied = actors.working.model.parameters() if hasattr(actors, "working") else ()
    others = {id(weight) for weight in anchor}
    sizes = {
        "weights": size(p for p in trainer.model.parameters() if id(p) not in others),
        "gradients": gradients.held,
        "optimizer": size(moments),
        "anchor": size(anchor),
        "working_copy": size(copied),
    }
    return {**sizes, "total": sum(sizes.values())}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bf16": True},
        {"optim": "sgd"},
        {"frozen_parameters": ["embed_tokens"]},
        {**FIXED, "bf16": True},
        OFFLINE,
        LORA,
        {**LORA, "bf16": True},
        {**LORA, **FIXED, "bf16": True},
        {**LORA, **OFFLINE},
        CREDITED,
        {**LORA, **CREDITED},
        {**CREDITED, "tilted_start": True},
    ],
    ids=lambda changes: "-".join(map(str, changes)) or "full",
)
@pytest.mark.parametrize("kind", ["llama_grouped_heads", "tied"])
def test_a_dry_run_counts_the_bytes_that_training_holds(
    changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    if changes.get("use_peft") and changes.get("bf16"):
        cast_weights(model, torch.bfloat16)  # as DistillationConfig.policy_dtype has it loaded
    groups = stored_groups(3) if "method" in changes and "num_generations" not in changes else None
    credits = stored_credits(groups or []) if changes.get("method") == CREDITED["method"] else None
    trainer = make_trainer(
        tmp_path / "out", model=model, groups=groups, credits=credits, max_steps=1, **changes
    )
    told = memory_estimate(LocalPolicy(str(tmp_path / "model")), trainer.args, trainer.method)
    own_head = 19 * 32 if kind == "tied" and "tilted_start" in changes else 0
    assert told["parameters"] == sum(p.numel() for p in make_model(kind).parameters()) + own_head
    assert told["trained_parameters"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert told["memory_bytes"] == held(trainer)
    assert told["memory_bytes"]["total"] > 0
