"""bf16 means that training multiplies in bfloat16, with full weights and with adapters."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nonpareil.models.adapters import plain_model
from nonpareil.models.loading import cast_weights
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs
from nonpareil.training.step.accumulate import adapters_take_what_comes
from tests.tiny import make_model
from tests.training.conftest import PROMPTS, make_trainer

LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["all-linear"]}
SEQUENCES = TokenSequences([[1, 7, 8], [1, 9, 9]], [[7, 8, 2], [9, 2]])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_bf16_training_multiplies_in_bfloat16(changes: dict[str, Any], bf16: bool, tmp_path: Path) -> None:
    model = make_model()
    if bf16 and changes:
        cast_weights(model, torch.bfloat16)
    trainer = make_trainer(tmp_path, model=model, bf16=bf16, **changes)
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    targets = trainer.method.targets(batch.draws)
    policy = plain_model(trainer.model).train()
    seen: list[torch.dtype] = []
    for module in policy.modules():
        if type(module) is nn.Linear:
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.accumulator.step(policy, batch, targets)
    assert len(seen) > 14
    assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_what_draws_is_what_is_trained_but_for_rounding(
    changes: dict[str, Any], bf16: bool, tmp_path: Path
) -> None:
    """In bfloat16 both multiply the same rounded matrices, and round what is between them differently."""
    model = cast_weights(make_model(), torch.bfloat16) if bf16 and changes else make_model()
    trainer = make_trainer(tmp_path, model=model, bf16=bf16, max_steps=2, **changes)
    trainer.train()  # so that there is something to round
    batch = trainer.step_sampler.draw(PROMPTS, step=2)
    policy = plain_model(trainer.model).eval()
    count = batch.num_policy
    sequences = TokenSequences(
        [g.prompt_token_ids for g in batch.groups for _ in range(count)],
        [ids for g in batch.groups for ids in g.completion_token_ids[:count]],
    )
    with torch.no_grad(), trainer.accelerator.autocast():
        trained = completion_token_logprobs(policy, sequences)
    recorded = [each for g in batch.groups for each in g.logprobs[:count]]
    off = torch.cat(
        [(row[: len(r)] - torch.tensor(r)).abs() for row, r in zip(trained, recorded, strict=True)]
    )
    assert off.numel() > 20
    assert off.mean() < (0.03 if bf16 else 1e-5)
    assert off.max() < (0.2 if bf16 else 1e-4)
    assert not bf16 or off.max() > 0


def test_the_working_copy_holds_the_trained_weights_rounded_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True)
    trainer.train()
    trainer.step_sampler.draw(PROMPTS, step=4)
    actors: Any = trainer.step_sampler.actors
    copy = actors.take("policy")
    for held, trained in zip(copy.parameters(), trainer.model.parameters(), strict=True):
        assert held.dtype is torch.bfloat16
        assert torch.equal(held, trained.to(torch.bfloat16))
    assert any(not torch.equal(p.float().to(torch.bfloat16).float(), p) for p in trainer.model.parameters())


def test_adapters_keep_no_second_copy_of_their_inputs(tmp_path: Path) -> None:
    """The same bits, with fewer bytes kept for the backward pass than by PEFT's cast to float32."""
    trainer = make_trainer(tmp_path, model=cast_weights(make_model(), torch.bfloat16), bf16=True, **LORA)
    policy: Any = plain_model(trainer.model).train()
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    results, sizes = [], []
    hooks = torch.autograd.graph.saved_tensors_hooks
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    for context in (nullcontext, partial(adapters_take_what_comes, policy, autocast)):
        kept.clear()
        with hooks(pack, lambda tensor: tensor), autocast(), context():
            loss = completion_token_logprobs(policy, SEQUENCES).sum()
        sizes.append(sum(kept.values()))
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in policy.parameters() if p.requires_grad)])
        policy.zero_grad(set_to_none=True)
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
    assert sizes[1] < 0.9 * sizes[0]
    assert all(getattr(m, "cast_input_dtype_enabled", True) for m in policy.modules()), "put back"


def test_weights_in_half_precision_lose_small_steps_which_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers reads most models by itself; an adapter on such a base is in float32, and loses none."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        trainer = make_trainer(
            tmp_path / str(dtype), model=cast_weights(make_model(), dtype), learning_rate=3e-6, max_steps=1
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        pairs = zip(before, trainer.model.parameters(), strict=True)
        moved[dtype] = torch.cat([(was != now).flatten() for was, now in pairs]).double().mean().item()
    assert moved[torch.bfloat16] < 0.1 < 0.9 < moved[torch.float32]
    make_trainer(tmp_path / "lora", model=cast_weights(make_model(), torch.bfloat16), **LORA)
    said = capsys.readouterr().err
    assert (
        said.count("in bfloat16, where most steps of learning_rate=3e-06 round to none: read the model with")
        == 1
    )
    assert said.count("round to none") == 1
