"""Whether a classifier scores a text alike when what it begins with was read before: the model itself is asked.

A decoder that pools at its last token does; an encoder, a recurrent model, or one that pools elsewhere may not, and
no list of architectures would know those to come. Where the answer is no, every text is scored whole.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nonpareil.models.cache_name import cache_name
from nonpareil.models.devices import device_of
from nonpareil.models.finer_dtype import FINER, in_dtype
from nonpareil.rewards.models.passes import logits_of, pad_of
from nonpareil.rewards.models.prefix_cache import keeps_all, read_prefixes

PREFIX, SUFFIXES = 6, (1, 3, 5)
"""Tokens of the made-up texts; the suffixes are uneven, so that some are padded."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Most that two scores of a text may differ by, as a share of the scores' standard deviation."""
KEYS_TOLERANCE = 0.05
"""Of a token's keys, as a share of their norm; rounding in bfloat16 is far below, another frequency far above."""


class PrefixCheck:
    """Asks a model once, and again for lengths that no answer covers yet."""

    def __init__(self, model: Any):
        """`model`: in evaluation mode whenever it is asked."""
        self._model = model
        self._scores_alike: bool | None = None
        self._held: list[tuple[int, int]] = []
        self._failed: list[tuple[int, int]] = []

    def holds(self, shortest: int, longest: int) -> bool:
        """Whether prefixes of `shortest` tokens or more may be read apart, in texts of at most `longest`.

        What holds does so for all lengths between; what ends in an error does not hold.
        """
        if any(least <= shortest and longest <= most for least, most in self._held):
            return True
        if any(shortest <= least and most <= longest for least, most in self._failed):
            return False
        try:
            holds = self._ask(shortest, longest)
        except Exception:  # noqa: BLE001 - models fail as they like; the other way asks nothing of them
            holds = False
        (self._held if holds else self._failed).append((shortest, longest))
        return holds

    def _ask(self, shortest: int, longest: int) -> bool:
        if self._scores_alike is None:
            self._scores_alike = False
            self._scores_alike = _scores_alike(self._model)
        return (
            self._scores_alike
            and keeps_all(self._model.config, longest)
            and _reads_beginnings_alike(self._model, shortest, longest)
        )


def _scores_alike(model: Any) -> bool:
    if cache_name(type(model)) is None or not keeps_all(model.config, PREFIX + max(SUFFIXES)):
        return False
    if _differs_by(model) <= TOLERANCE[model.dtype]:
        return True
    if model.dtype == torch.float32:
        return False
    with in_dtype(model, FINER[model.dtype]):  # rounding goes and a fault stays
        return _differs_by(model) <= TOLERANCE[FINER[model.dtype]]


def _differs_by(model: Any) -> float:
    """The largest difference between a made-up text's two scores, over the scores' standard deviation."""
    pad = pad_of(model)
    ids = _token_ids(model, 2 * (PREFIX + sum(SUFFIXES)))
    prefixes = [ids[:PREFIX], ids[PREFIX : 2 * PREFIX]]
    rest = iter(ids[2 * PREFIX :])
    suffixes = [[next(rest) for _ in range(length)] for length in SUFFIXES * 2]
    if pad is not None:  # also a token of texts, where it ends each message
        prefixes[1][PREFIX // 2] = pad
        suffixes[1][-1] = suffixes[4][-1] = suffixes[4][-2] = pad
    owners = [place // len(SUFFIXES) for place in range(len(suffixes))]
    rows = [prefixes[owner] + suffix for owner, suffix in zip(owners, suffixes, strict=True)]
    whole = torch.tensor(logits_of(model, rows))
    read = read_prefixes(model, prefixes)
    if read is None:
        return math.inf
    apart = torch.tensor(logits_of(model, suffixes, read, owners))
    share = ((whole - apart).abs().max() / whole.std()).item()
    return share if math.isfinite(share) else math.inf


@torch.inference_mode()
def _reads_beginnings_alike(model: Any, shortest: int, longest: int) -> bool:
    """Whether a token's keys stay as they are in a longer text: some models turn by other angles there."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return True
    beginning, ids = [0, shortest // 2, shortest - 1], _token_ids(model, 4)
    alone = _keys(model, ids[:-1], beginning)
    followed = _keys(model, ids, [*beginning, longest - 1])
    return all(
        (one - other[..., : len(beginning), :]).norm() <= KEYS_TOLERANCE * one.norm()
        for one, other in zip(alone, followed, strict=True)
    )


def _keys(model: Any, ids: Sequence[int], positions: Sequence[int]) -> list[Tensor]:
    """The keys of every layer, of a few tokens at these positions."""
    cache = DynamicCache(config=model.config)
    input_ids = torch.tensor([list(ids)])
    inputs = {"input_ids": input_ids, "position_ids": torch.tensor([list(positions)])}
    inputs["attention_mask"] = torch.ones_like(input_ids)
    device = device_of(model)
    model(
        **{name: tensor.to(device) for name, tensor in inputs.items()},
        use_cache=True,
        **{cache_name(type(model)) or "": cache},
    )
    return [layer.keys.float() for layer in cache.layers]  # type: ignore[union-attr]


def _token_ids(model: Any, count: int) -> list[int]:
    """Ids spread over the vocabulary, none that the configuration names where that can be."""
    special: set[Any] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if "token_id" in name or "token_index" in name:
                special |= set(value if isinstance(value, list) else [value])
    vocabulary = range(model.get_input_embeddings().weight.shape[0])
    plain = [token for token in vocabulary if token not in special] or list(vocabulary)
    stride = max(1, len(plain) // count)
    return [plain[i * stride % len(plain)] for i in range(count)]
