"""How much is drawn in one batch on a GPU, where a decode step takes as long for few rows as for many."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nonpareil.engines.batches import DrawRequest
from nonpareil.models.devices import device_of

CACHE_SHARE = 8
"""The keys of one batch take 1 over this of a GPU's memory; its prompts' pass takes about as much again."""
LARGER = 16
"""At most this many times `max_tokens_per_batch`."""
LOGIT_BYTES = 32
"""A float32 logit, and what sampling makes of it."""


def drawing_bounds(
    model: PreTrainedModel, max_tokens: int, queries: int, requests: Sequence[DrawRequest] = ()
) -> tuple[int, int]:
    """Most tokens of a batch of draws, and what a row counts besides its own tokens (`batches`).

    Where prompts are padded, each of their tokens has a mask of all, a byte and a number each, beside its keys.

    On a CPU they are as given; so they are where a batch takes more memory than keys tell: of a model that is no
    `keys_are_most`, or with `queries`, which a network with keys of its own reads beside the model.
    """
    size = model.dtype.itemsize
    per_token = cache_bytes(model.config, size)
    if per_token is None or queries:
        return max_tokens, queries
    longest = max((len(prompt.token_ids) for each in requests for prompt in each.prompts), default=0)
    tokens = tokens_on(device_of(model), per_token + (1 + size) * longest, max_tokens)
    if tokens == max_tokens or not keys_are_most(model):
        return max_tokens, queries
    return tokens, LOGIT_BYTES * model.config.get_text_config().vocab_size // per_token


def keys_are_most(model: PreTrainedModel) -> bool:
    """Whether a batch takes memory by its keys, and not by what grows faster.

    Eager attention writes out the products of all tokens with all, a model that takes no `logits_to_keep` the
    logits of whole prompts; recurrent layers keep a state for each row, however short.
    """
    config = model.config
    layers = DynamicCache(config=config).layers
    return (
        config.get_text_config()._attn_implementation != "eager"
        and "logits_to_keep" in inspect.signature(type(model).forward).parameters
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )


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

    A decoder of the usual kind is meant; keys that are made of latents (DeepSeek's) lie there in the one form or
    the other, as transformers has it, and some layers' may be wider than others' (Gemma 4's).
    """
    try:
        config = config.get_text_config()
        if any(getattr(config, name, None) for name in ("kv_lora_rank", "global_head_dim")):
            return None
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        heads = getattr(config, "num_key_value_heads", None) or heads
        return int(2 * layers * heads * width * size)
    except Exception:  # noqa: BLE001 - missing, or another number in each layer, which some configs refuse to tell
        return None
