"""LoRA as TRL's flags have it (dropout, rslora, dora, modules to save): from the first draw to the merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from nonpareil.errors import ConfigError
from nonpareil.models.adapters import ANCHOR, POLICY, add_policy_adapter, plain_model
from nonpareil.models.loading import load_policy
from nonpareil.models.merged_folder import save_merged
from nonpareil.models.merging import merged
from nonpareil.training import DistillationConfig, DistillationTrainer
from tests.tiny import forced_logprobs, make_model, make_tokenizer, prompts_of
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
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "saved": {"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "dropout": {"lora_dropout": 0.3},
    "plain": {},
    "dora and dropout": {"use_dora": True, "lora_dropout": 0.3, "use_rslora": True},
}
OWN = {"saved": 4 + 1 + 2 + 5, "dora and dropout": 14 * 3}
"""Tensors of one adapter. The head has a bias; five norms end in the name."""
IDS = torch.tensor([[1, 7, 8, 9, 12]])


def trainer_of(folder: Path, kind: str, **changes: Any) -> DistillationTrainer:
    return make_trainer(folder, **{**LORA, **KINDS[kind], **changes})


def moved(trainer: DistillationTrainer) -> DistillationTrainer:
    """Policy and anchor far from the base, and from one another."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if {POLICY, ANCHOR} & {*name.split(".")}:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return trainer


def alone(
    trainer: DistillationTrainer, adapter: str | None, prompt: list[int], ids: list[int]
) -> torch.Tensor:
    """By PEFT's own way with one adapter, or none."""
    adapted: Any = trainer.model
    adapted.eval()
    if adapter is None:
        with adapted.disable_adapter():
            return forced_logprobs(adapted, prompt, ids)
    adapted.set_adapter(adapter)
    try:
        return forced_logprobs(adapted, prompt, ids)
    finally:
        adapted.set_adapter(POLICY)


@pytest.mark.parametrize("kind", ["dora and dropout", "rslora", "saved"])
def test_rows_of_one_pass_are_peft_with_each_adapter_alone(kind: str, tmp_path: Path) -> None:
    trainer = moved(trainer_of(tmp_path, kind))
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    for i, group in enumerate(batch.groups):
        prompt = group.prompt_token_ids
        for j, (ids, values) in enumerate(zip(group.completion_token_ids, group.logprobs, strict=True)):
            expected = alone(trainer, POLICY if j == 0 else ANCHOR, prompt, ids).detach()
            torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=0)
        theirs = alone(trainer, ANCHOR, prompt, group.completion_token_ids[0]).sum().detach()
        torch.testing.assert_close(batch.draws.anchor_logprobs_of_policy[i, 0], theirs, atol=1e-4, rtol=0)
    with torch.no_grad(), trainer.model.disable_adapter():
        assert torch.equal(trainer.model(IDS).logits, ending_model()(IDS).logits), "the reference is the base"


@pytest.mark.parametrize("kind", ["dora and dropout", "saved"])
def test_the_anchor_averages_all_that_is_trained(kind: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, kind, max_steps=2)
    before = {name: weight.clone() for name, weight in trainer.anchor.weights().items()}
    trained = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    assert {id(p) for p in trainer.anchor.weights_of(trainer.model)} == trained
    assert len(trained) == len(before) == OWN[kind]
    for (name, mine), theirs in zip(before.items(), trainer.anchor.weights_of(trainer.model), strict=True):
        assert torch.equal(mine, theirs), name
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.anchor.weights().items())
    with torch.no_grad(), trainer.model.disable_adapter():
        assert torch.equal(trainer.model(IDS).logits, ending_model()(IDS).logits)


@pytest.mark.parametrize("kind", ["dora and dropout", "saved"])
def test_resume_is_bit_for_bit_and_the_adapter_is_plain_pefts(kind: str, tmp_path: Path) -> None:
    straight = trainer_of(tmp_path / "straight", kind, max_steps=3)
    straight.train()
    trainer_of(
        tmp_path / "stopped", kind, max_steps=3, save_strategy="steps", save_steps=2, callbacks=[StopAfter(2)]
    ).train()
    torch.manual_seed(99)  # what is dropped follows from the training's own seed
    second = trainer_of(tmp_path / "stopped", kind, max_steps=3)
    second.train(resume_from_checkpoint=True)
    assert_same(weights(second.model), weights(straight.model))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")

    base = tmp_path / "base"
    ending_model().save_pretrained(base)
    trained: Any = plain_model(straight.model).eval()
    straight.save_model(str(tmp_path / "adapter"))
    plain = PeftModel.from_pretrained(ending_model(), str(tmp_path / "adapter"))
    assert torch.equal(plain(IDS).logits, trained(IDS).logits)
    assert not torch.allclose(trained(IDS).logits, ending_model()(IDS).logits, atol=1e-3)
    both = merged(ending_model(), str(tmp_path / "adapter")).model
    torch.testing.assert_close(both(IDS).logits, trained(IDS).logits, atol=1e-5, rtol=0)


def test_dropout_is_of_the_passes_with_gradients_alone(tmp_path: Path) -> None:
    trainers = [moved(trainer_of(tmp_path / kind, kind)) for kind in ("dropout", "dropout", "plain")]
    batches = [trainer.step_sampler.draw(PROMPTS, step=0) for trainer in trainers]
    gradients = []
    for trainer, batch in zip(trainers, batches, strict=True):
        assert batch.groups == batches[2].groups, "draws know of no dropout"
        trainer.descent.step(plain_model(trainer.model), batch, 1)
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    assert_same(gradients[0], gradients[1])
    name = next(name for name in gradients[0] if "lora_B" in name)
    assert not torch.allclose(gradients[0][name], gradients[2][name], rtol=0.01)
    drops = [
        m for n, m in plain_model(trainers[0].model).named_modules() if n.endswith(f"lora_dropout.{POLICY}")
    ]
    assert [module.p for module in drops] == [0.3] * 14
    assert not any(module.training for module in drops)
    other = trainers[0]
    other.model.zero_grad()
    other.descent.step(plain_model(other.model), batches[0], 2)
    assert not torch.allclose(dict(other.model.named_parameters())[name].grad, gradients[1][name], rtol=0.01)


def test_shared_rows_are_asked_about_without_dropout(tmp_path: Path) -> None:
    """Two passes that drop other inputs would differ, and no row would ever be shared."""
    from nonpareil.models.adapters import adapter_dropout
    from nonpareil.models.logprobs import TokenSequences
    from nonpareil.models.packing_check import takes_rows

    model = plain_model(moved(trainer_of(tmp_path, "dropout")).model)
    sequences = TokenSequences([[1, 7, 8]] * 2, [[9, 12], [8, 8, 2]])
    with adapter_dropout(model, 1):
        assert takes_rows(model, sequences, [[0, 1]])


def test_copies_of_a_half_precision_base_are_trained_in_float32(tmp_path: Path) -> None:
    model = ending_model().to(torch.bfloat16)
    trainer = trainer_of(tmp_path, "saved", model=model, bf16=True, max_steps=2, learning_rate=1e-4)
    own = [p for p in trainer.model.parameters() if p.requires_grad]
    assert {p.dtype for p in own} == {p.dtype for p in trainer.anchor.weights().values()} == {torch.float32}
    before = [p.detach().clone() for p in own]
    trainer.train()
    assert all(not torch.equal(was, now) for was, now in zip(before, own, strict=True))
    assert plain_model(trainer.model).dtype == torch.bfloat16
    assert len(trainer.step_sampler.draw(PROMPTS, step=5).groups) == len(PROMPTS)


@pytest.mark.parametrize("kind", ["dora", "saved"])
def test_what_was_trained_is_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    trainer = moved(trainer_of(tmp_path / "run", kind, model=base))
    folder = tmp_path / "adapter"
    trainer.save_model(str(folder))
    expected = plain_model(trainer.model).eval()(IDS).logits
    loaded, _ = load_policy(str(folder), dtype="float32")
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-4, rtol=0)
    save_merged(folder, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lora_modules_to_save": ["no_such"]}, "no layer of the name 'no_such'"),
        ({"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["mlp"]}, "'mlp' holds other layers"),
        (
            {"use_dora": True, "lora_target_modules": ["embed_tokens"]},
            "use_dora: .*embed_tokens is a Embedding",
        ),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"use_dora": True, "use_vllm": True}, "use_vllm with use_dora"),
        ({"lora_modules_to_save": ["norm"], "use_vllm": True}, "use_vllm with lora_modules_to_save"),
    ],
)
def test_what_cannot_hold_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        make_trainer(tmp_path, **{**LORA, **change})


def test_flags_are_pefts_settings_under_trls_names() -> None:
    config = DistillationConfig(
        output_dir="x",
        use_cpu=True,
        **LORA,
        lora_dropout=0.05,
        use_rslora=True,
        use_dora=True,
        lora_modules_to_save=["norm"],
    ).lora_config()
    assert config is not None
    assert (config.lora_dropout, config.use_rslora, config.use_dora) == (0.05, True, True)
    assert config.modules_to_save == ["norm"]
    adapted = add_policy_adapter(make_model(), config)
    assert next(m.scaling[POLICY] for m in adapted.modules() if hasattr(m, "lora_A")) == 8 / 4**0.5


def test_checkpointing_drops_the_same_inputs_again_in_shared_rows(tmp_path: Path) -> None:
    long = prompts_of(*[[1, *[6 + (i * j) % 13 for j in range(36 + 3 * i)]] for i in range(1, 7)])
    settings: dict[str, Any] = {"method": "rloo", "num_generations": 4, "per_device_train_batch_size": 6}
    trained, shared = [], []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        trainer = trainer_of(
            folder,
            "dora and dropout",
            prompts=long,
            max_steps=1,
            gradient_checkpointing=checkpointing,
            **settings,
        )
        widths: list[tuple[int, ...]] = []
        plain_model(trainer.model).get_input_embeddings().register_forward_hook(
            lambda module, inputs, output, widths=widths: widths.append(tuple(inputs[0].shape))
        )
        trainer.train()
        shared.append(any(width[-1] > 60 for width in widths))
        trained.append(weights(trainer.model))
    assert shared == [True, True], "several completions behind one prompt"
    assert_same(*trained, atol=1e-6, rtol=0)
