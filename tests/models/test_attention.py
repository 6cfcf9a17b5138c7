"""Attention as plain products is torch's own, and takes its place on CPUs in bfloat16 training alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nonpareil.models import attention
from nonpareil.models.attention import products_on
from nonpareil.models.logprobs import completion_logprobs
from tests.models.test_logprobs import SEQUENCES
from tests.tiny import make_model

CPU = torch.device("cpu")
FLASH = "_scaled_dot_product_flash_attention_for_cpu"


class Called(TorchDispatchMode):
    """The names of what torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def states(*shape: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, *shape, dtype=dtype).requires_grad_() for heads in (4, 2, 2)]


def result(*inputs: Tensor, **options: Any) -> list[Tensor]:
    for each in inputs:
        each.grad = None
    out = functional.scaled_dot_product_attention(*inputs, enable_gqa=True, **options)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach().float(), *(each.grad.float() for each in inputs if each.grad is not None)]


MASK = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.4
MASK |= torch.eye(9, dtype=torch.bool)
CASES: dict[str, dict[str, Any]] = {
    "causal": {"is_causal": True},
    "whole": {},
    "scaled": {"scale": 0.7, "is_causal": True},
    "masked": {"attn_mask": MASK},
    "added": {"attn_mask": torch.zeros(2, 1, 9, 9, dtype=torch.bfloat16).masked_fill(~MASK, -1e9)},
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact_options = {
        k: v.float() if k == "attn_mask" and v.is_floating_point() else v for k, v in CASES[case].items()
    }
    exact = result(*[each.float().detach().requires_grad_() for each in states(9, 16)], **exact_options)
    usual = result(*states(9, 16), **CASES[case])
    with Called() as called, products_on(CPU):
        ours = result(*states(9, 16), **CASES[case])
    assert "bmm" in called.names
    assert FLASH not in called.names
    for mine, theirs, want in zip(ours, usual, exact, strict=True):
        scale = want.abs().max()
        assert (mine - want).abs().max() < 0.02 * scale
        assert (mine - want).norm() < 2 * (theirs - want).norm() + 0.002 * want.norm(), (
            "no less exact than torch's"
        )


@pytest.mark.parametrize("other", ["float32", "no gradient", "wide", "dropout", "one query"])
def test_all_else_is_torchs_to_the_bit(other: str) -> None:
    width = attention.WIDEST + 1 if other == "wide" else 9
    inputs = states(width, 16, dtype=torch.float32 if other == "float32" else torch.bfloat16)
    if other == "one query":
        inputs[0] = inputs[0][:, :, :1]
    grad = torch.no_grad() if other == "no gradient" else torch.enable_grad()
    options: dict[str, Any] = {"dropout_p": 0.3} if other == "dropout" else {}

    def run() -> Tensor:
        torch.manual_seed(3)
        return functional.scaled_dot_product_attention(*inputs, enable_gqa=True, **options)

    with grad:
        usual = run()
        with products_on(CPU):
            assert torch.equal(run(), usual)


def test_on_an_accelerator_and_afterwards_it_is_torchs() -> None:
    usual = functional.scaled_dot_product_attention
    with products_on(torch.device("cuda")):
        assert functional.scaled_dot_product_attention is usual
    with products_on(CPU):
        assert functional.scaled_dot_product_attention is not usual
    assert functional.scaled_dot_product_attention is usual


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_models_gradients_under_autocast(checkpointing: bool) -> None:
    model = make_model().train()
    exact = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    usual = gradients(model, autocast=True)
    with Called() as called, products_on(CPU):
        ours = gradients(model, autocast=True)
    assert FLASH not in called.names
    for name, want in exact.items():
        error, torchs = (ours[name] - want).norm(), (usual[name] - want).norm()
        assert error < 1.5 * torchs + 0.01 * want.norm()


def gradients(model: Any, *, autocast: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = completion_logprobs(model, SEQUENCES)
    values.sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_a_mask_that_is_learned_gets_its_gradient() -> None:
    """As in Doge, whose attention adds what its layers work out for each key."""
    learned = torch.zeros(1, 4, 9, 9, dtype=torch.bfloat16, requires_grad=True)
    with products_on(CPU):
        result(*states(9, 8), attn_mask=learned)
    assert learned.grad is not None
    assert learned.grad.abs().max() > 0
