"""A key-value cache written in place. transformers' own copies the whole cache at every token."""

import inspect
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nonpareil.errors import ModelError
from nonpareil.models.cache_name import cache_name


def cache_argument(model: type[PreTrainedModel], config: PretrainedConfig) -> str:
    """What the model's forward pass calls its cache: `past_key_values`, or `cache` in newer transformers.

    Needs no weights.

    Raises:
        ModelError: a model that keeps its state in another way, or that has no layer of attention.
    """
    name = cache_name(model)
    if name is None or not _has_attention(config):
        # Most models take any name without a word, and would draw each token without its past.
        raise ModelError(
            f"{model.__name__} does not take transformers' cache of attention's keys and values, and would "
            "draw each token without its past; use a model that does, a hybrid one included"
        )
    return name


def arguments_taken(model: type[PreTrainedModel]) -> set[str]:
    """Of the arguments that not every forward pass knows, those that this one takes."""
    parameters = inspect.signature(model.forward).parameters
    passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {"position_ids", "logits_to_keep"}
    return known if passed_on else known & set(parameters)


def takes_branches(model: type[PreTrainedModel], config: PretrainedConfig) -> bool:
    """Whether a row of the model may hold several completions: positions and masks are given, not counted.

    A model that works out biases from the order of its keys (ALiBi) would see the branches as one text.
    """
    return "position_ids" in inspect.signature(model.forward).parameters and not getattr(
        config, "alibi", False
    )


def check_architecture(config: PretrainedConfig) -> None:
    """Refuse what no weights can mend, before any is read; a model that brings its own code is asked when loaded.

    Raises:
        ModelError: as `cache_argument`, or a model whose cache is of a class of its own.
    """
    model: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model is None:
        return  # loading says so
    name = cache_argument(model, config)
    inner: Any = AutoModel._model_mapping.get(type(config), model)
    for part in (model, inner):
        parameter = inspect.signature(part.forward).parameters.get(name)
        for own in get_args(parameter.annotation) if parameter is not None else ():
            if inspect.isclass(own) and issubclass(own, Cache) and own is not Cache:
                raise ModelError(
                    f"{model.__name__} keeps its past in a {own.__name__} of its own, which cannot be shared by "
                    "the completions of a prompt; use a model with transformers' cache of keys and values"
                )


def _has_attention(config: PretrainedConfig) -> bool:
    """Whether some layer keeps keys and values; recurrent ones alone go by other names in older transformers."""
    cache = DynamicCache(config=config)
    return not cache.layers or any(isinstance(layer, DynamicLayer) for layer in cache.layers)


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

    def take(self, rows: Tensor, prompt: int, source: Tensor, branches: int, capacity: int) -> None:
        """Keep some rows: their prompt, and behind it the branches that `source` names.

        Args:
            rows: `[b]`, rows to keep.
            prompt: tokens of a row that all of its branches share.
            source: `[b, s]`, the old branch that each new one was.
            branches: branches of a row until now.
            capacity: tokens of a row that there is to be room for.
        """
        length, kept = self.keys.shape[-2], source.shape[1]
        steps = (length - prompt) // branches
        end = prompt + steps * kept
        grown = []
        for filled in (self.keys, self.values):
            buffer = filled.new_empty(len(rows), filled.shape[1], capacity, filled.shape[-1])
            buffer[:, :, :prompt] = filled[rows, :, :prompt]
            own = filled[rows, :, prompt:].unflatten(2, (steps, branches))
            index = source[:, None, None, :, None].expand(-1, own.shape[1], steps, -1, own.shape[-1])
            buffer[:, :, prompt:end] = own.gather(3, index).flatten(2, 3)
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])
        self._set_length(end)

    def cut_back(self, tokens: int) -> None:
        """Keep the first `tokens` of every row; the next are written over the others."""
        self._set_length(tokens)

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


def in_place_cache(config: PretrainedConfig, tokens: int | None = None) -> DynamicCache:
    """A cache for one batch; layers that are not plain attention (sliding window, recurrent) stay as they are.

    `tokens`: most of a prompt with its completion, where known; a sliding window that holds them all is none.
    """
    cache = DynamicCache(config=config)
    cache.layers = [InPlaceLayer() if _is_plain(layer, tokens) else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = InPlaceLayer
    return cache


def is_in_place(cache: DynamicCache) -> bool:
    """Whether all of its layers are plain attention, whose keys may lie in any order."""
    return all(isinstance(layer, InPlaceLayer) for layer in cache.layers)


def _is_plain(layer: Any, tokens: int | None) -> bool:
    window = getattr(layer, "sliding_window", None)
    if type(layer) is DynamicSlidingWindowLayer:
        return tokens is not None and window is not None and tokens <= window
    return type(layer) is DynamicLayer


def expand_cache(cache: DynamicCache, rows: Tensor, capacity: int) -> None:
    """Share each prefilled prompt with all of its samples: `rows` names the prompt of each sample."""
    for layer in cache.layers:
        if isinstance(layer, InPlaceLayer):
            layer.expand(rows, capacity)
        else:
            layer.reorder_cache(rows)  # type: ignore[arg-type]
