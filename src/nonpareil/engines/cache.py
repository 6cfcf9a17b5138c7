"""A key-value cache written in place. transformers' own copies the whole cache at every token."""

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class InPlaceLayer(DynamicLayer):
    """Keys and values in buffers with room to spare; `keys` and `values` are views of the filled part."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new states behind the old ones and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._reallocate(torch.arange(self.keys.shape[0], device=self.keys.device), end + end // 2)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._set_length(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep (or repeat) some rows; of transformers' names for it, the one that every kind of layer has."""
        self._reallocate(beam_idx, self._buffers[0].shape[-2])

    def expand(self, rows: Tensor, capacity: int) -> None:
        """Repeat rows and make room for `capacity` tokens in all, in one copy."""
        self._reallocate(rows, max(capacity, self.keys.shape[-2]))

    def _reallocate(self, rows: Tensor, capacity: int) -> None:
        length = self.keys.shape[-2]
        grown = []
        for filled in (self.keys, self.values):
            buffer = filled.new_empty(len(rows), filled.shape[1], capacity, filled.shape[-1])
            buffer[:, :, :length] = filled[rows]
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])
        self._set_length(length)

    def _set_length(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def in_place_cache(config: PretrainedConfig) -> DynamicCache:
    """A cache for one batch; layers that are not plain attention (sliding window, recurrent) stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = InPlaceLayer
    return cache


def expand_cache(cache: DynamicCache, rows: Tensor, capacity: int) -> None:
    """Share each prefilled prompt with all of its samples: `rows` names the prompt of each sample."""
    for layer in cache.layers:
        if isinstance(layer, InPlaceLayer):
            layer.expand(rows, capacity)
        else:
            layer.reorder_cache(rows)  # type: ignore[arg-type]
