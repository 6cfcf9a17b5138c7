"""One convention for formulas of one number: float in, float out; tensor in, tensor out."""

import functools
from collections.abc import Callable
from typing import Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from nonpareil.errors import ConfigError

Real = float | int
"""Any real number. Spelled out because run-time checkers do not take an int for a float."""


@runtime_checkable
class Formula(Protocol):
    """A formula of one number, elementwise over tensors."""

    @overload
    def __call__(self, value: Real, /) -> float: ...
    @overload
    def __call__(self, value: Tensor, /) -> Tensor: ...


def elementwise(formula: Callable[[Tensor], Tensor]) -> Formula:
    """Let a formula of float64 tensors take a number or any tensor; it is always worked out in float64.

    A number gives a float. A tensor gives a tensor of its shape and device, in its dtype, float32 at least.
    """

    @functools.wraps(formula)
    def wrapper(value, /):  # type: ignore[no-untyped-def]  # typed by Formula
        if isinstance(value, Tensor):
            return formula(value.double()).to(at_least_float32(value))
        return formula(torch.tensor(value, dtype=torch.float64)).item()

    return wrapper


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The tensor's own dtype; float32 for half precision and integers."""
    return torch.promote_types(tensor.dtype, torch.float32)


def refuse_unless(kept: Tensor, argument: str, value: Tensor, remedy: str) -> None:
    """Raise a ConfigError that names the first element of `value` where `kept` is False.

    Raises:
        ConfigError: some element of `kept` is False.
    """
    if not bool(kept.all()):
        first = value[~kept].flatten()[0].item()
        raise ConfigError(f"{argument} = {first:g}: {remedy}")
