"""Training in bfloat16 on CPUs: attention as plain products, since torch's own is slow there, mostly backwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

WIDEST = 256
"""Most keys: attention's weights are kept for the backward pass, and grow with the square of a row's tokens."""


@contextmanager
def products_on(device: torch.device) -> Iterator[None]:
    """Where it is faster, `scaled_dot_product_attention` as plain products; on accelerators nothing changes.

    It belongs around the backward pass too, in which checkpointing repeats the forward one. That is why torch's
    function is exchanged by name: a `TorchFunctionMode` is laid aside for the whole of a backward pass.
    """
    if device.type != "cpu":
        yield
        return
    usual = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = partial(_attention, usual)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def _attention(
    usual: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """torch's arguments; what plain products are not for goes to torch."""
    autocast = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if autocast else query.dtype
    square = query.shape[-2] == key.shape[-2] <= WIDEST
    learned = attn_mask is not None and attn_mask.requires_grad
    ours = torch.is_grad_enabled() and dtype == torch.bfloat16 and square and query.dim() == 4
    if not ours or learned or dropout_p:
        return usual(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if groups := query.shape[1] // key.shape[1] if options.get("enable_gqa") else 0:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril_()
    scale = options.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _ProductAttention.apply(query.to(dtype), key.to(dtype), value.to(dtype), attn_mask, scale)
    return out


class _ProductAttention(torch.autograd.Function):
    """softmax(scale QK' + mask) V, softmax in float32; its weights are kept in the products' own type."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "b h t d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s e"],
        mask: Tensor | None,
        scale: float,
    ) -> Float[Tensor, "b h t e"]:
        scores = (query @ key.mT).float().mul_(scale)
        if mask is not None and mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores.add_(mask)
        weights = scores.softmax(-1).to(query.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (gradient,) = gradients
        query, key, value, weights = ctx.saved_tensors
        of_weights = (gradient @ value.mT).float()
        # Of the softmax: each weight, times by how much its own gradient is above their weighted mean.
        known = weights.float()
        of_weights.sub_((of_weights * known).sum(-1, keepdim=True)).mul_(known).mul_(ctx.scale)
        of_scores = of_weights.to(query.dtype)
        return of_scores @ key, of_scores.mT @ query, weights.mT @ gradient, None, None
