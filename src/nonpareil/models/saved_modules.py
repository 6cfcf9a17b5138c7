"""LoRA's `modules_to_save`: whole layers that policy and anchor have as copies, and the reference as they were."""

from typing import Any

import torch
from torch import Tensor, nn

Saved = Any
"""PEFT's `ModulesToSaveWrapper`."""


def saved_modules(model: nn.Module) -> dict[str, Saved]:
    """The layers that adapters have copies of, by name."""
    from peft.utils.other import ModulesToSaveWrapper

    return {
        name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }


def in_float32(model: nn.Module, adapter: str) -> None:
    """Hold one adapter's copies in float32, whatever the base is in: a small step of half precision is none.

    They are given, and answer in, the base's type, as the layers before and behind them are.
    """
    for wrapper in saved_modules(model).values():
        copy = wrapper.modules_to_save[adapter]
        floating = next((weight.dtype for weight in copy.parameters() if weight.is_floating_point()), None)
        if floating in (None, torch.float32):
            continue
        copy.float()
        copy.register_forward_pre_hook(_widened)
        copy.register_forward_hook(_Narrowed(floating))


def _widened(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    floating = (torch.bfloat16, torch.float16)
    return tuple(x.float() if isinstance(x, Tensor) and x.dtype in floating else x for x in inputs)


class _Narrowed:
    """Gives what a layer answers in the base's type."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(self.dtype)
