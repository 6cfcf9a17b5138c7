"""A model in a finer dtype for a moment, to tell rounding from a fault."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

FINER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
"""In the finer dtype, rounding goes and a fault stays."""


@contextmanager
def in_dtype(model: PreTrainedModel, finer: torch.dtype) -> Iterator[None]:
    """Weights in a finer dtype, and as they were afterwards, bit for bit."""
    coarse, experts = model.dtype, getattr(model.config, "_experts_implementation", None)
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.dtype == coarse]
    try:
        if experts is not None:
            model.set_experts_implementation("eager")  # grouped products know no float64
        for tensor in tensors:
            tensor.data = tensor.data.to(finer)
        yield
    finally:
        for tensor in tensors:
            tensor.data = tensor.data.to(coarse)
        if experts is not None:
            model.set_experts_implementation(experts)
