"""Rows of one pass with different adapters: both adapters stacked, against PEFT's own gathering of rows."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from nonpareil.models import adapter_rows
from nonpareil.models.adapter_rows import row_adapters
from nonpareil.models.adapters import (
    ANCHOR,
    POLICY,
    REFERENCE,
    AdapterAnchor,
    add_policy_adapter,
    plain_model,
)
from tests.tiny import make_model

IDS = torch.tensor([[1, 7, 8, 9], [1, 9, 9, 8], [5, 6, 7, 8], [1, 12, 11, 10], [3, 2, 1, 8]])
MIXED = [POLICY, REFERENCE, ANCHOR, ANCHOR, POLICY]
EVERYWHERE: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def two_adapters(kind: str = "llama_grouped_heads", dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    policy = add_policy_adapter(make_model(kind).to(dtype), LoraConfig(**{**EVERYWHERE, **config}))
    AdapterAnchor(policy, 0.1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return plain_model(policy).eval()


@torch.no_grad()
def logits(model: Any, names: list[str]) -> torch.Tensor:
    with row_adapters(model, names):
        return model(IDS[: len(names)]).logits


@pytest.mark.parametrize(
    ("kind", "config", "stacked"),
    [
        ("llama_grouped_heads", {}, 14),
        ("llama_grouped_heads", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 40}}, 14),
        ("llama_grouped_heads", {"target_modules": ["embed_tokens", "q_proj"]}, 2),
        ("gpt2", {"target_modules": ["c_attn"]}, 0),  # Conv1D
        ("bloom_without_window", {"lora_bias": True, "target_modules": ["query_key_value"]}, 0),
    ],
)
@pytest.mark.parametrize("names", [MIXED, [ANCHOR] * 3, [POLICY, REFERENCE], [REFERENCE] * 2])
def test_stacked_adapters_are_pefts_own(
    kind: str, config: dict[str, Any], stacked: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_adapters(kind, **config)
    assert sum(adapter_rows.can_be_stacked(m) for m in model.modules() if isinstance(m, LoraLayer)) == stacked
    ours = logits(model, names)
    monkeypatch.setattr(adapter_rows, "can_be_stacked", lambda layer: False)
    torch.testing.assert_close(ours, logits(model, names), atol=2e-5, rtol=1e-5)


def test_bfloat16_rows_stay_within_its_rounding_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = logits(two_adapters(), MIXED)
    ours = two_adapters(dtype=torch.bfloat16)
    near = (logits(ours, MIXED).float() - exact).abs().mean()
    monkeypatch.setattr(adapter_rows, "can_be_stacked", lambda layer: False)
    assert near < 1.5 * (logits(ours, MIXED).float() - exact).abs().mean()


def test_rows_may_change_from_pass_to_pass_and_leave_nothing() -> None:
    model = two_adapters()
    alone = {name: logits(model, [name] * 5) for name in (POLICY, ANCHOR, REFERENCE)}
    assert not torch.allclose(alone[POLICY], alone[ANCHOR], atol=1e-2)
    names = list(MIXED)
    with torch.no_grad(), row_adapters(model, names) as rows:
        for _ in range(3):
            got = model(IDS).logits
            for row, name in enumerate(names):
                torch.testing.assert_close(got[row], alone[name][row], atol=2e-5, rtol=1e-5)
            names[:] = names[1:] + names[:1]  # the same list, changed in place
            rows.names = names
    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(model(IDS).logits, alone[POLICY], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [["q_proj"], ["embed_tokens"]], ids=["stacked", "PEFT's"])
def test_rows_without_a_name_are_an_error_that_leaves_nothing(target: list[str]) -> None:
    model = two_adapters(target_modules=target)
    before = model(IDS).logits
    with pytest.raises(ValueError, match="adapter_names"), row_adapters(model, MIXED[:3]):
        model(IDS)
    assert torch.equal(model(IDS).logits, before)
    assert not any(isinstance(m, nn.Module) and m._forward_pre_hooks for m in model.modules())


def test_the_anchor_of_an_embeddings_adapter_moves_too() -> None:
    """Its factors are named otherwise than a linear layer's; left out, they would silently stay where they were."""
    policy = add_policy_adapter(make_model(), LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    anchor = AdapterAnchor(policy, 0.25)
    assert sum("lora_embedding" in name for name in anchor.weights()) == 2
    assert len(anchor.weights()) == len(anchor.weights_of(policy)) == 6
    assert not any(p.requires_grad for p in anchor.weights().values())
    assert all(p.requires_grad for p in anchor.weights_of(policy))
    before = [p.clone() for p in anchor.weights().values()]
    with torch.no_grad():
        for parameter in anchor.weights_of(policy):
            parameter += 1.0
    anchor.after_step(policy, 1)
    for was, now in zip(before, anchor.weights().values(), strict=True):
        torch.testing.assert_close(now, was + 0.25, atol=1e-6, rtol=0)
