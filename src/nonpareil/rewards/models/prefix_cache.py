"""The keys and values of what several texts begin with, computed once and read by the pass of each."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nonpareil.models.cache_name import cache_name
from nonpareil.models.devices import device_of


class Prefixes:
    """Beginnings of texts, all of one length, that a model has read.

    One length leaves no gap between a prefix and what follows it, so that every model counts positions and
    distances as in a whole text.
    """

    def __init__(self, cache: DynamicCache, length: int):
        """`cache`: of a pass over the prefixes, one a row."""
        self.length = length
        self._layers: list[Any] = list(cache.layers)

    def cache(self, owners: Int[Tensor, " b"], config: Any) -> DynamicCache:
        """A cache for one pass over rows of which each follows the prefix that `owners` names."""
        cache = DynamicCache(config=config)
        cache.layers = [_PrefixLayer(layer.keys, layer.values, owners) for layer in self._layers]
        return cache


class _PrefixLayer(DynamicLayer):
    """Puts each row's prefix before its new states, layer by layer: what is put together is never kept."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, owners: Int[Tensor, " b"]):
        super().__init__()
        self.keys, self.values, self.owners = keys, values, owners
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The prefixes' states and the new ones behind them, as the rest of the pass reads them."""
        return self._behind(self.keys, key_states), self._behind(self.values, value_states)

    def _behind(self, prefixes: Tensor, states: Tensor) -> Tensor:
        one = len(prefixes) == 1  # then no copy of it is made but the one into its place
        before = prefixes.expand(len(states), -1, -1, -1) if one else prefixes[self.owners]
        return torch.cat([before, states], dim=-2)


@torch.inference_mode()
def read_prefixes(model: Any, prefixes: Sequence[Sequence[int]]) -> Prefixes | None:
    """One pass over prefixes of one length; None where the model did not keep what it read as a cache does."""
    name = cache_name(type(model))
    if name is None:
        return None
    cache = DynamicCache(config=model.config)
    config, length = model.config.get_text_config(), len(prefixes[0])
    declared = config.pad_token_id
    if declared is None:
        config.pad_token_id = 0  # asked for where there are several rows; what they score here is not read
    try:
        input_ids = torch.tensor([list(ids) for ids in prefixes], device=device_of(model))
        mask = torch.ones_like(input_ids)
        model(input_ids=input_ids, attention_mask=mask, use_cache=True, **{name: cache})
    finally:
        config.pad_token_id = declared
    layers: list[Any] = list(cache.layers)
    kept = bool(layers) and all(
        layer.is_initialized and (len(layer.keys), layer.keys.shape[-2]) == (len(prefixes), length)
        for layer in layers
    )
    return Prefixes(cache, length) if kept else None


def keeps_all(config: Any, tokens: int) -> bool:
    """Whether every layer's cache holds so many tokens: attention, without a window or with one as long."""
    layers: list[Any] = DynamicCache(config=config).layers
    return bool(layers) and all(
        layer.sliding_window >= tokens
        if type(layer) is DynamicSlidingWindowLayer
        else type(layer) is DynamicLayer
        for layer in layers
    )
