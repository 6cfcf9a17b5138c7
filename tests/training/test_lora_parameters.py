"""LoRA of parameters that no linear layer holds (experts in one tensor): drawn, trained, resumed, saved, merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from nonpareil.errors import ConfigError
from nonpareil.models.adapters import plain_model
from nonpareil.models.loading import load_policy
from nonpareil.models.merged_folder import save_merged
from tests.tiny import LLAMA, make_tokenizer
from tests.training.conftest import PROMPTS, StopAfter, assert_same, make_trainer, weights
from tests.training.test_lora_kinds import ANCHOR, IDS, POLICY, alone, moved

EXPERTS: dict[str, Any] = {
    "use_peft": True,
    "lora_r": 2,
    "lora_target_modules": ["q_proj"],
    "lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}


def experts() -> Any:
    torch.manual_seed(0)
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**LLAMA, **shape, "initializer_range": 0.3})).eval()


def test_experts_are_drawn_trained_resumed_and_merged(tmp_path: Path) -> None:
    base = tmp_path / "base"
    experts().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    read = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = moved(make_trainer(tmp_path / "run", model=read, **EXPERTS))
    changed = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert len(changed) == 2 * 2 * 3  # two factors, in two layers, of q_proj and of both parameters
    batch = trainer.step_sampler.draw(PROMPTS, step=0)
    for i, group in enumerate(batch.groups):
        drawn = zip((POLICY, ANCHOR, ANCHOR), group.completion_token_ids, group.logprobs, strict=True)
        for adapter, ids, values in drawn:
            expected = alone(trainer, adapter, group.prompt_token_ids, ids).detach()
            torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=0)
        theirs = alone(trainer, ANCHOR, group.prompt_token_ids, group.completion_token_ids[0]).sum().detach()
        torch.testing.assert_close(batch.draws.anchor_logprobs_of_policy[i, 0], theirs, atol=1e-4, rtol=0)
    with torch.no_grad(), trainer.model.disable_adapter():  # type: ignore[operator]
        assert torch.equal(trainer.model(IDS).logits, experts()(IDS).logits), "the reference is the base"

    trainer.save_model(str(tmp_path / "adapter"))
    expected = plain_model(trainer.model).eval()(IDS).logits
    assert not torch.allclose(expected, experts()(IDS).logits, atol=1e-2)
    loaded, _ = load_policy(str(tmp_path / "adapter"), dtype="float32")
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-4, rtol=0)
    save_merged(tmp_path / "adapter", tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_training_of_experts_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    straight = make_trainer(tmp_path / "straight", model=experts(), max_steps=2, **EXPERTS)
    before = weights(straight.model)
    straight.train()
    moving = [
        name for name, weight in weights(straight.model).items() if not torch.equal(weight, before[name])
    ]
    assert any("experts" in name and POLICY in name for name in moving)
    assert any("experts" in name and ANCHOR in name for name in moving)
    half = {"save_strategy": "steps", "save_steps": 1, "callbacks": [StopAfter(1)]}
    make_trainer(tmp_path / "stopped", model=experts(), max_steps=2, **EXPERTS, **half).train()
    again = make_trainer(tmp_path / "stopped", model=experts(), max_steps=2, **EXPERTS)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again.model), weights(straight.model))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"lora_target_parameters": ["experts.up_proj"]},
            r"no parameter that ends in 'experts.up_proj'; there are experts.gate_up_proj, experts.down_proj",
        ),
        ({"lora_dropout": 0.1}, "lora_dropout with lora_target_parameters"),
        ({"use_dora": True}, "use_dora with lora_target_parameters"),
        ({"use_vllm": True}, "use_vllm with lora_target_parameters"),
        ({"load_in_4bit": True}, "with a quantised base"),
    ],
)
def test_what_cannot_go_with_parameters_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path, model=experts(), **{**EXPERTS, **change})


def test_a_peft_config_has_them_too(tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules=[], target_parameters=["experts.down_proj"], task_type="CAUSAL_LM"
    )
    trainer = make_trainer(tmp_path, model=experts(), peft_config=config)
    assert sum(p.requires_grad for p in trainer.model.parameters()) == 2 * 2
