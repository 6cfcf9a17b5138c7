"""Whether a model looks at its keys as a mask says, however many lie in between."""

import sys
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from nonpareil.engines.branches import Forward
from nonpareil.engines.cache import in_place_cache
from nonpareil.engines.canary import TOLERANCE
from nonpareil.models.devices import device_of

SEEN = 8
"""Tokens that the question is asked of."""
AT_ONCE = 1024
"""Hidden tokens of a pass, which bounds its memory."""


class KeyOrder:
    """Asks a model whose rows hold several completions whether it counts keys besides looking at the mask.

    A window that is cut by the keys' order, or a buffer as wide as the longest text, shows only in rows of many
    keys: the question is asked again when wider ones come.
    """

    def __init__(self, model: PreTrainedModel, forward: Callable[[Cache], Forward]):
        """`forward`: of passes that fill a cache."""
        self.model, self.forward = model, forward
        self.most = SEEN
        """Keys in a row up to which the mask is known to decide."""
        self.too_many = sys.maxsize

    def ask(self, keys: int) -> None:
        """See whether the mask decides in rows of so many keys, by a pass over as many tokens; see `most`."""
        if self.most < keys < self.too_many:
            if self._alike(keys):
                self.most = keys
            else:
                self.too_many = keys

    @torch.inference_mode()
    def _alike(self, keys: int) -> bool:
        """Whether a token that sees a few others answers alike when many hidden ones lie in between."""
        device, dtype = device_of(self.model), self.model.dtype
        at = torch.arange(SEEN, device=device)[None]
        ids = at % self.model.config.get_text_config().vocab_size
        try:
            expected = _logprobs(self.forward(self._cache())(ids, None, at, 1))
            forward = self.forward(self._cache())
            forward(ids[:, :-1], None, at[:, :-1], 1)
            for some in ids[0, -1:].expand(keys - SEEN).split(AT_ONCE):
                forward(some[None], None, at[:, -1:].expand(1, len(some)), 1)
            mask = torch.full((1, 1, 1, keys), torch.finfo(dtype).min, dtype=dtype, device=device)
            mask[..., : SEEN - 1] = mask[..., -1] = 0
            found = _logprobs(forward(ids[:, -1:], mask, at[:, -1:], 1))
        except (RuntimeError, IndexError, ValueError):
            return False  # more keys than a buffer of the model's has room for
        tolerance = TOLERANCE.get(str(dtype).removeprefix("torch."), TOLERANCE["float32"])
        return bool((found - expected).abs().mean() <= tolerance * min(1.0, expected.std().item()))

    def _cache(self) -> DynamicCache:
        return in_place_cache(self.model.config, SEEN)


def _logprobs(logits: Float[Tensor, "1 s v"]) -> Float[Tensor, " v"]:
    return logits[0, -1].float().log_softmax(-1)
