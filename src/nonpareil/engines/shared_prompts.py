"""How the completions of a batch share their prompts: a prompt's keys are held and read once for all of them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.engines.branches import MOST_IDLE, Forward, Prefilled
from nonpareil.engines.cache import InPlaceLayer
from nonpareil.engines.shared_layers import ApartLayer, JointLayer, Places, Room, SharedLayer

MOST_MASKED = 2
"""Prompt and completions are attended to in one product as long as that looks at so many times the keys at most."""


class SharedPrompts:
    """The samples of a batch, a row each, whose prompts are in the cache once; see `branches.Branches`."""

    def __init__(self, forward: Forward, prompts: Prefilled, counts: list[int]):
        """`counts`: samples of each prompt; `forward` attends by `attention.attend`."""
        self.forward, self.cache = forward, prompts.cache
        device = prompts.lengths.device
        self.prompt_of_row = torch.repeat_interleave(
            torch.arange(len(counts), device=device), torch.tensor(counts, device=device)
        )
        """Of each sample, the prompt that it was drawn for."""
        self._here = self.prompt_of_row
        """The same among the prompts that are still in the cache."""
        self.lengths = prompts.lengths[self.prompt_of_row]
        self.places = Places(self._here, len(counts))
        self.room = self._split(prompts)

    def _split(self, prompts: Prefilled) -> Room:
        """Turn the cache of prompts into one of prompts and completions, layer by layer."""
        columns = torch.arange(prompts.width, device=self.lengths.device)
        padding = columns[None] < (prompts.width - prompts.lengths)[:, None]
        first = self.cache.layers[0]
        assert isinstance(first, InPlaceLayer)
        hidden = torch.zeros(padding.shape, dtype=first.keys.dtype, device=padding.device)
        room = Room(hidden.masked_fill_(padding, -torch.inf), prompts.padded, prompts.budget)
        kind = JointLayer if self._joins(prompts.width, prompts.budget) else ApartLayer
        for i, layer in enumerate(self.cache.layers):
            assert isinstance(layer, InPlaceLayer)
            self.cache.layers[i] = kind(layer, self.places, room)
        return room

    def _joins(self, width: int, budget: int) -> bool:
        """Whether one product over prompt and completions is little waste."""
        each, rows = self.places.each, len(self.places.place)
        little = width + each * budget <= MOST_MASKED * (width + budget)
        return little and self.places.prompts * each * (1 - MOST_IDLE) <= rows

    def next(self, tokens: Int[Tensor, " r"], step: int) -> Float[Tensor, "r v"]:
        """Logits behind each sample's `step`-th token, which is written into the cache."""
        self.room.advance(self.places)
        return self.forward(tokens[:, None], None, (self.lengths + step)[:, None])[:, -1]

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on; prompts without any leave."""
        self.prompt_of_row, self.lengths = self.prompt_of_row[alive], self.lengths[alive]
        prompts, self._here = self._here[alive].unique(return_inverse=True)
        self.places = Places(self._here, len(prompts))
        self.room.keep(prompts)
        for layer in self.cache.layers:
            assert isinstance(layer, SharedLayer)
            layer.take(alive, prompts, self.places)

    def repeat(self, rows: Int[Tensor, " r"]) -> None:
        """As `keep`, of samples in rising order, one of which may go on several times."""
        self.keep(rows)
