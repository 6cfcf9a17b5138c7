"""LoRA: policy and anchor are two adapters on one base, equal to plain models with the adapter merged in."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import ConfigError
from nonpareil.models.adapter_rows import row_adapters
from nonpareil.models.adapters import ANCHOR, POLICY, REFERENCE, plain_model
from nonpareil.models.anchors import ANCHOR_FILE
from nonpareil.models.merging import merged
from nonpareil.training import DistillationTrainer
from nonpareil.training.actors.choose import make_actors
from tests.tiny import forced_logprobs, make_tokenizer
from tests.training.conftest import (
    PROMPTS,
    StopAfter,
    assert_same,
    ending_model,
    make_trainer,
    metrics,
    weights,
)

LORA: dict[str, Any] = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["all-linear"]}
IDS = torch.tensor([[1, 7, 8, 9]])


def lora_trainer(folder: Path, **changes: Any) -> DistillationTrainer:
    return make_trainer(folder, **{**LORA, **changes})


def moved(trainer: DistillationTrainer, seed: int = 0) -> DistillationTrainer:
    """Both adapters somewhere of their own, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in trainer.model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return trainer


def merged_copy(trainer: DistillationTrainer, adapter: str) -> PreTrainedModel:
    """A plain model with one adapter's weights added in, by the formula."""
    base: Any = copy.deepcopy(plain_model(trainer.model))
    plain = ending_model()
    deltas = {}
    for name, module in base.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            deltas[name] = module.scaling[adapter] * (b @ a)
    assert len(deltas) == 14
    with torch.no_grad():
        for name, delta in deltas.items():
            plain.get_submodule(name).weight += delta
    return plain


def test_policy_and_anchor_start_as_the_reference(tmp_path: Path) -> None:
    trainer = lora_trainer(tmp_path)
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    torch.testing.assert_close(batch.draws.log_ratio, torch.zeros(len(PROMPTS), 1), atol=1e-5, rtol=0)
    assert not any(p.requires_grad for n, p in trainer.model.named_parameters() if f".{POLICY}." not in n)
    assert all(p.requires_grad for n, p in trainer.model.named_parameters() if f".{POLICY}." in n)


def test_one_pass_draws_what_two_merged_models_draw(tmp_path: Path) -> None:
    trainer = moved(lora_trainer(tmp_path))
    models = {"policy": merged_copy(trainer, POLICY), "anchor": merged_copy(trainer, ANCHOR)}
    actors = trainer.step_sampler.actors
    passes: list[int] = []
    hook = plain_model(trainer.model).register_forward_hook(lambda *_: passes.append(1))
    sampling = {role: trainer.step_sampler._sampling(3, role) for role in models}
    both = actors.draw(PROMPTS, 3, 2, sampling["policy"], sampling["anchor"])
    ours, theirs = both.policy, both.anchor
    hook.remove()
    assert len(passes) <= 6, "one prefill and at most five tokens: both adapters in the same passes"
    for role, drawn, count in (("policy", ours, 3), ("anchor", theirs, 2)):
        engine = TransformersEngine(models[role], make_tokenizer())
        alone = engine.draw(PROMPTS, count, sampling[role])
        assert [d.completion_token_ids for d in drawn] == [d.completion_token_ids for d in alone]
    assert ours[0].completion_token_ids != theirs[0].completion_token_ids


def test_log_probs_are_those_of_the_merged_models(tmp_path: Path) -> None:
    trainer = moved(lora_trainer(tmp_path))
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    models = {"policy": merged_copy(trainer, POLICY), "anchor": merged_copy(trainer, ANCHOR)}
    for i, group in enumerate(batch.groups):
        own = group.completion_token_ids[0]
        expected = forced_logprobs(models["policy"], group.prompt_token_ids, own)
        torch.testing.assert_close(torch.tensor(group.logprobs[0]), expected, atol=1e-4, rtol=0)
        anchor = forced_logprobs(models["anchor"], group.prompt_token_ids, own).sum()
        torch.testing.assert_close(
            batch.draws.anchor_logprobs_of_policy[i, 0], anchor.detach(), atol=1e-4, rtol=0
        )
        for ids, values in zip(group.completion_token_ids[1:], group.logprobs[1:], strict=True):
            expected = forced_logprobs(models["anchor"], group.prompt_token_ids, ids)
            torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=0)


def test_a_fixed_reference_is_the_base_with_adapters_off(tmp_path: Path) -> None:
    trainer = moved(lora_trainer(tmp_path, method="bond", n=2, num_generations=1, num_reference_samples=2))
    assert ANCHOR not in trainer.model.peft_config
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    for group in batch.groups:
        for ids, values in zip(group.completion_token_ids[1:], group.logprobs[1:], strict=True):
            expected = forced_logprobs(ending_model(), group.prompt_token_ids, ids)
            torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=0)


def test_a_step_has_the_gradient_of_the_merged_weights(tmp_path: Path) -> None:
    """d loss/dB = scaling * (d loss/dW) A^T, with d loss/dW from a full-weight trainer at the same point."""
    lora = lora_trainer(tmp_path / "lora")
    full = make_trainer(tmp_path / "full")
    losses = []
    for trainer in (lora, full):
        trainer.current_gradient_accumulation_steps = 1
        losses.append(trainer.training_step(trainer.model, PROMPTS).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    whole = {n: p.grad for n, p in full.model.named_parameters()}
    layers = [(n, m) for n, m in plain_model(lora.model).named_modules() if hasattr(m, "lora_A")]
    assert len(layers) == 14
    for name, layer in layers:
        expected = layer.scaling[POLICY] * whole[f"{name}.weight"] @ layer.lora_A[POLICY].weight.T
        torch.testing.assert_close(layer.lora_B[POLICY].weight.grad, expected, atol=2e-5, rtol=1e-3)


def test_the_anchor_is_the_moving_average_of_the_adapter_in_float32(tmp_path: Path) -> None:
    trainer = lora_trainer(tmp_path, max_steps=1, bf16=True)
    before = {n: p.clone() for n, p in trainer.anchor.weights().items()}
    trainer.train()
    after = trainer.anchor.weights()
    assert {p.dtype for p in after.values()} == {torch.float32}
    policy = trainer.anchor.weights_of(trainer.model)
    assert len(after) == 28
    for (name, mine), theirs in zip(after.items(), policy, strict=True):
        torch.testing.assert_close(mine, before[name].lerp(theirs.detach(), 0.1), rtol=0, atol=0)
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_nothing_is_copied(tmp_path: Path) -> None:
    model = ending_model()
    storage = {n: p.data_ptr() for n, p in model.named_parameters()}
    trainer = lora_trainer(tmp_path, model=model, max_steps=1)
    trainer.train()
    assert trainer.step_sampler.actors.engine.model is plain_model(trainer.model) is model
    assert not hasattr(trainer.anchor, "module")
    named = dict(model.named_parameters())
    for name, pointer in storage.items():
        inner = name.replace(".weight", ".base_layer.weight")
        assert named[inner if inner in named else name].data_ptr() == pointer
    adapters = sum(p.numel() for n, p in named.items() if "lora_" in n)
    assert (
        sum(p.numel() for p in named.values())
        == sum(p.numel() for p in ending_model().parameters()) + adapters
    )
    assert len(trainer.optimizer.state) == 28, "the optimizer holds the policy's factors alone"


@pytest.mark.parametrize("save_steps", [2])
def test_resume_is_bit_for_bit(tmp_path: Path, save_steps: int) -> None:
    straight = lora_trainer(tmp_path / "straight", max_steps=4)
    straight.train()
    first = lora_trainer(
        tmp_path / "stopped",
        max_steps=4,
        save_strategy="steps",
        save_steps=save_steps,
        callbacks=[StopAfter(2)],
    )
    first.train()
    checkpoint = tmp_path / "stopped" / "checkpoint-2"
    assert {"adapter_model.safetensors", ANCHOR_FILE, "optimizer.pt"} <= {
        p.name for p in checkpoint.iterdir()
    }
    assert not (checkpoint / "model.safetensors").exists()
    assert all(".anchor." in name for name in load_file(checkpoint / ANCHOR_FILE))
    second = lora_trainer(tmp_path / "stopped", max_steps=4)
    second.train(resume_from_checkpoint=True)
    assert_same(weights(second.model), weights(straight.model))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_the_final_adapter_loads_with_plain_peft(tmp_path: Path) -> None:
    trainer = lora_trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    names = {p.name for p in (tmp_path / "adapter").iterdir()}
    assert "adapter_config.json" in names
    assert "anchor" not in names
    plain = PeftModel.from_pretrained(ending_model(), str(tmp_path / "adapter"))
    trained = plain_model(trainer.model).eval()
    assert torch.equal(plain(IDS).logits, trained(IDS).logits)
    assert not torch.equal(trained(IDS).logits, ending_model()(IDS).logits)
    both = merged(ending_model(), str(tmp_path / "adapter")).model
    torch.testing.assert_close(both(IDS).logits, trained(IDS).logits, atol=1e-5, rtol=0)


def test_an_error_leaves_no_adapter_behind(tmp_path: Path) -> None:
    """PEFT's own mixed batches leave hooks behind when a pass fails, and later passes use the old adapters."""
    trainer = moved(lora_trainer(tmp_path))
    model = plain_model(trainer.model).eval()
    before = model(IDS).logits
    with pytest.raises(ValueError, match="adapter_names"), row_adapters(model, [ANCHOR, REFERENCE]):
        model(IDS)
    assert torch.equal(model(IDS).logits, before)
    with row_adapters(model, [REFERENCE]):
        assert torch.equal(model(IDS).logits, ending_model()(IDS).logits)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_config": LoraConfig(bias="all", target_modules=["q_proj"])}, "bias"),
        ({"lora_target_modules": ["no_such_layer"]}, "lora_target_modules"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "output head"),
        ({"lora_r": 0}, "lora_r"),
        ({"frozen_parameters": ["embed_tokens"]}, "frozen_parameters"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        lora_trainer(tmp_path, **change)


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing_in_bfloat16(tmp_path: Path, lora: dict[str, Any]) -> None:
    gradients = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            tmp_path / str(checkpointing),
            bf16=True,
            gradient_checkpointing=checkpointing,
            max_steps=1,
            **lora,
        )
        clip = trainer.accelerator.clip_grad_norm_
        seen: dict[str, torch.Tensor] = {}

        def kept(
            parameters: Any, norm: float, trainer: Any = trainer, seen: Any = seen, clip: Any = clip
        ) -> Any:
            seen.update(
                {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            )
            return clip(parameters, norm)

        trainer.accelerator.clip_grad_norm_ = kept
        trainer.train()
        gradients.append(seen)
    assert any("lora_A" in name for name in gradients[0]) == bool(lora)
    assert_same(*gradients)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lora_target_modules": ["embed_tokens"]}, "embed_tokens"),
        (
            {"peft_config": LoraConfig(target_modules=["q_proj"], alpha_pattern={"q_proj": 3})},
            "alpha_pattern",
        ),
    ],
)
def test_an_adapter_that_vllm_would_hold_in_part_is_refused_before_vllm_is_asked(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    trainer = lora_trainer(tmp_path, **change)
    trainer.args.use_vllm = True
    with pytest.raises(ConfigError, match=f"use_vllm with LoRA: .*{named}"):
        make_actors(trainer.model, trainer.anchor, make_tokenizer(), trainer.args, PROMPTS)


def test_an_adapters_start_follows_from_the_seed_alone(tmp_path: Path) -> None:
    def start(before: int, seed: int) -> torch.Tensor:
        model = ending_model()
        torch.manual_seed(before)
        trainer = lora_trainer(tmp_path, model=model, seed=seed)
        return next(p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_A" in n)

    assert torch.equal(start(1, seed=7), start(2, seed=7))
    assert not torch.equal(start(1, seed=7), start(1, seed=8))


# --- A PEFT model of the user's own


def own(seed: int = 7, **changes: Any) -> Any:
    base, config = ending_model(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    torch.manual_seed(seed)  # as the trainer does for its own
    return get_peft_model(base, config, **changes)


def learnt() -> Any:
    adapted = own()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data += 0.3
    return adapted


def test_a_fresh_one_is_trained_and_saved_as_by_a_peft_config(tmp_path: Path) -> None:
    given, made = tmp_path / "given", tmp_path / "made"
    of_config = {"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")}
    for method in ("rloo", "jbond"):
        ours, theirs = (
            make_trainer(folder / method, method=method, max_steps=2, **changes)
            for folder, changes in ((given, {"model": own()}), (made, of_config))
        )
        for trainer in (ours, theirs):
            trainer.train()
            trainer.save_model()
        assert_same(weights(ours.model), weights(theirs.model))
    files = [
        {path.relative_to(f) for path in f.rglob("*safetensors")} for f in (given / "jbond", made / "jbond")
    ]
    assert files[0] == files[1] == {Path("adapter_model.safetensors")}


def test_one_that_has_learnt_is_compared_with_itself_or_refused(tmp_path: Path) -> None:
    """A reference that never moves is the base without any adapter: best-of-N of another model than is trained."""
    trainer = make_trainer(tmp_path, model=learnt())  # J-BOND's anchor begins as the policy
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    torch.testing.assert_close(batch.draws.log_ratio, torch.zeros(len(PROMPTS), 1), atol=1e-5, rtol=0)
    for method in ("bond", "rloo"):
        with pytest.raises(ConfigError, match="whose adapter has been trained, and the reference"):
            make_trainer(tmp_path, model=learnt(), method=method)


def test_one_that_could_not_be_trained_is_refused(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear")
    for changes, says in (
        ({"model": own(adapter_name="mine")}, "the adapter 'mine'; what is trained is called 'default'"),
        ({"model": own().requires_grad_(False)}, "with nothing to train: load it with .*is_trainable=True"),
        ({"model": own(), "peft_config": config}, "which has an adapter: merge that first"),
    ):
        with pytest.raises(ConfigError, match=says):
            make_trainer(tmp_path, **changes)
