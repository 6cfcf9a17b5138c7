"""On a CUDA device: the steps of the CPU, exact resume, and LoRA's memory. Marked gpu, skipped without one."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from nonpareil.models.adapters import add_policy_adapter, plain_model
from nonpareil.models.loading import cast_weights
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, output_head_is_plain
from nonpareil.training import DistillationTrainer
from tests.tiny import LLAMA, forced_logprobs, prompts_of
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    assert_same,
    ending_model,
    make_trainer,
    metrics,
    weights,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Read when cuBLAS first starts, so before any test: with it, matrix products repeat bit for bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["all-linear"]}
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.02, "use_cpu": False}
MIB = 2**20


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that add in one order; the fast ones of attention and indexing need not."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def on_cpu(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.float().cpu() for name, value in values.items()}


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_a_step_in_float32_is_the_step_on_the_cpu(changes: dict[str, Any], tmp_path: Path) -> None:
    drawn, trained = {}, {}
    for device in ("cpu", "gpu"):  # one after the other: accelerate knows one device per process
        trainer = make_trainer(
            tmp_path / device, **{**SGD, **changes, "use_cpu": device == "cpu"}, max_steps=2, bf16=False
        )
        kind = "cuda" if device == "gpu" else "cpu"
        assert trainer.args.device.type == next(trainer.model.parameters()).device.type == kind
        drawn[device] = trainer.step_sampler.draw(PROMPTS, step=0).groups
        trainer.train()
        trained[device] = on_cpu(weights(trainer.model))
    for ours, theirs in zip(drawn["gpu"], drawn["cpu"], strict=True):
        assert ours.completion_token_ids == theirs.completion_token_ids
        for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert mine == pytest.approx(other, abs=1e-4)
    for mine, other in zip(metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-4)
    cpu = trained["cpu"]
    assert_same(trained["gpu"], cpu, atol=1e-4, rtol=1e-3)
    start = weights(make_trainer(tmp_path / "start", **changes).model)
    assert any(not torch.equal(value, start[name]) for name, value in cpu.items()), "nothing moved"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_resume_is_bit_for_bit_with_deterministic_kernels(
    changes: dict[str, Any], bf16: bool, tmp_path: Path
) -> None:
    """Without them a straight run does not repeat its own bits either."""
    settings: dict[str, Any] = {**changes, "use_cpu": False, "bf16": bf16, "max_steps": 4}
    with deterministic():
        straight = make_trainer(tmp_path / "straight", **settings)
        straight.train()
        saving = {"save_strategy": "steps", "save_steps": 2, "callbacks": [StopAfter(2)]}
        make_trainer(tmp_path / "stopped", **settings, **saving).train()
        resumed = make_trainer(tmp_path / "stopped", **settings)
        resumed.train(resume_from_checkpoint=True)
    assert_same(weights(resumed.model), weights(straight.model))
    assert_same(dict(resumed.anchor.weights()), dict(straight.anchor.weights()))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_the_working_copy_draws_in_bfloat16_and_the_anchor_stays_in_float32(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, use_cpu=False, bf16=True, max_steps=1)
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    copy = trainer.step_sampler.actors.working.model
    assert {(p.dtype, p.device.type) for p in copy.parameters()} == {(torch.bfloat16, "cuda")}
    assert {b.dtype for b in copy.buffers() if b.is_floating_point()} == {torch.float32}
    for mine, theirs in zip(copy.parameters(), trainer.anchor.module.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(mine, theirs.to(torch.bfloat16)), "what it scored with last"
    exact = cast_weights(ending_model(), torch.bfloat16).float()
    for group in batch.groups:
        for ids, recorded in zip(group.completion_token_ids, group.logprobs, strict=True):
            expected = forced_logprobs(exact, group.prompt_token_ids, ids)
            torch.testing.assert_close(torch.tensor(recorded), expected, atol=0.15, rtol=0)


def wide_model() -> PreTrainedModel:
    """About 90M parameters, nearly all in its linear layers, which would show as a copy."""
    config = {
        **LLAMA,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "initializer_range": 0.02,
    }
    torch.manual_seed(0)
    return cast_weights(AutoModelForCausalLM.from_config(LlamaConfig(**config)), torch.bfloat16).eval()


def activations_alone(rows: int, trainer: DistillationTrainer) -> int:
    """Peak bytes of the policy's own forward and backward pass over what it holds, gradients included."""
    adapted = add_policy_adapter(wide_model(), trainer.args.lora_config()).to("cuda")
    policy: Any = plain_model(adapted).train()
    sequences = TokenSequences([[1, 7, 8, 9]] * rows, [[7] * 6] * rows)
    output_head_is_plain(policy)
    for _ in range(2):  # the first one leaves gradients and cuBLAS's workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = completion_token_logprobs(policy, sequences).sum()
        loss.backward()
        del loss
    return torch.cuda.max_memory_allocated() - before


def test_lora_needs_the_base_two_adapters_and_activations(tmp_path: Path) -> None:
    prompts = prompts_of(*[[1, 7, 8, 9]] * 24)
    trainer = make_trainer(
        tmp_path,
        model=wide_model(),
        prompts=prompts,
        **{**LORA, "use_cpu": False, "bf16": True, "max_steps": 2},
        per_device_train_batch_size=24,
        max_tokens_per_batch=480,
    )
    activations = activations_alone(48, trainer)
    gc.collect()
    torch.cuda.empty_cache()
    named = dict(trainer.model.named_parameters())
    base = sum(p.numel() * p.element_size() for n, p in named.items() if "lora_" not in n)
    adapter = sum(p.numel() * p.element_size() for p in trainer.anchor.weights().values())
    assert base > 150 * MIB
    before = torch.cuda.memory_allocated() - base - 2 * adapter
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() - before
    # Training an adapter takes its gradient and two moments besides; the rest is fragments and workspaces.
    slack = 32 * MIB
    assert peak <= base + 2 * adapter + 3 * adapter + activations + slack
    assert slack < base / 2, "a copy of the base would show"
