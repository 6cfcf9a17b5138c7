"""Attention of one decode step whose keys lie in two places: a prompt's, and each completion's own.

transformers looks an attention function up by the name in a model's config. While a batch is drawn, that name is
ours; nothing of a model is replaced. `shared_prompts` holds the keys, and the products.
"""

import functools
import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

NAME = "nonpareil_shared_prompt"
USUAL = "sdpa"
"""The attention that ours stands in for, its arguments included; a model that uses another one keeps it."""
READ = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"}
"""Arguments of the usual attention that say nothing more of a step's single query, or that ours reads."""


class Keys(Protocol):
    """What attends to the keys of one layer, wherever they lie."""

    def attend(self, query: Tensor, scale: float) -> Tensor:
        """`[rows, heads, 1, dim]` queries; `[rows, 1, heads, dim]` mixed values."""
        ...


def sign(tensor: Tensor, keys: Keys) -> None:
    """Note on a tensor whose it is: a model that hands it on as it is can be answered by `keys`."""
    tensor.nonpareil_keys = weakref.ref(keys)  # type: ignore[attr-defined]


def _owner(tensor: Tensor) -> Keys | None:
    noted: weakref.ref[Keys] | None = getattr(tensor, "nonpareil_keys", None)
    return None if noted is None else noted()


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: what its sdpa gives over the prompt's keys followed by the completion's.

    Raises:
        NotImplementedError: a model that asks for something else, a mask of its own or changed keys included.
    """
    found, same = _owner(key), _owner(value)
    more = [name for name in _arguments_unread() if options.get(name) is not None]
    if found is None or same is not found or attention_mask is not None or dropout or more:
        raise NotImplementedError(f"{type(module).__name__} attends in a way of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return found.attend(query, scale), None


@functools.cache
def _arguments_unread() -> set[str]:
    """Of the usual attention in this version of transformers; what it does not name, it does not heed."""
    return set(inspect.signature(AttentionInterface()[USUAL]).parameters) - READ


def attention_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """The configs in which a model's layers look for the usual attention; none where they use another."""
    configs = {
        id(c): c for m in model.modules() if isinstance(c := getattr(m, "config", None), PretrainedConfig)
    }
    return [c for c in configs.values() if c._attn_implementation == USUAL]


@contextmanager
def shared_attention(configs: Sequence[PretrainedConfig]) -> Iterator[None]:
    """Layers that look into these configs attend by `attend`; afterwards, as before."""
    try:
        for config in configs:
            config._attn_implementation = {"": NAME}  # a dict leaves the configs inside as they are
        yield
    finally:
        for config in configs:
            config._attn_implementation = {"": USUAL}


def quick_to_start(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU, attention without cuDNN's: it plans anew for every number of keys, and each token has another."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels) if device.type == "cuda" else nullcontext()


AttentionInterface.register(NAME, attend)
