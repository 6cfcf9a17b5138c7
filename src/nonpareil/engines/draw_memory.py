"""How much is drawn in one batch on a GPU, where a decode step takes as long for few rows as for many."""

from typing import Any

import torch
from transformers import PreTrainedModel

from nonpareil.models.devices import device_of

CACHE_SHARE = 8
"""The keys of one batch take 1 over this of a GPU's memory; its prompts' pass takes about as much again."""
LARGER = 16
"""At most this many times `max_tokens_per_batch`: masks of long prompts grow with more than the tokens."""
LOGIT_BYTES = 32
"""A float32 logit, and what sampling makes of it."""


def drawing_bounds(model: PreTrainedModel, max_tokens: int, queries: int) -> tuple[int, int]:
    """Most tokens of a batch of draws, and what a row counts besides its own tokens (`batches`).

    On a CPU, and of a model whose config does not tell the size of its cache, they are as given.
    """
    per_token = cache_bytes(model.config, model.dtype.itemsize)
    tokens = tokens_on(device_of(model), per_token, max_tokens)
    if per_token is None or tokens == max_tokens:
        return max_tokens, queries
    return tokens, queries + LOGIT_BYTES * model.config.get_text_config().vocab_size // per_token


def tokens_on(device: torch.device, per_token: int | None, max_tokens: int) -> int:
    """Most tokens of a batch of draws on a device, `per_token` bytes of keys each."""
    if device.type != "cuda" or per_token is None:
        return max_tokens
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return tokens_within(max_tokens, per_token, total, free)


def tokens_within(max_tokens: int, per_token: int, total: int, free: int) -> int:
    """`max_tokens`, doubled while its keys fit into their share of `total` and into a quarter of `free` bytes.

    Doubled, so that small changes of what is free change no batch, and with it no draw's rounding.
    """
    tokens = max_tokens
    while tokens < LARGER * max_tokens and 2 * tokens * per_token <= min(total // CACHE_SHARE, free // 4):
        tokens *= 2
    return tokens


def cache_bytes(config: Any, size: int) -> int | None:
    """Bytes of a token's keys and values in all layers, `size` bytes a number; None where the config does not say.

    A decoder of the usual kind is meant.
    """
    try:
        config = config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        heads = getattr(config, "num_key_value_heads", None) or heads
        return int(2 * layers * heads * width * size)
    except Exception:  # noqa: BLE001 - missing, or another number in each layer, which some configs refuse to tell
        return None
