"""How the completions of a batch share their prompts: a prompt's keys are held and read once for all of them.

To the model, each completion is a row of its own that has one new token. Only attention knows better: the queries
of a prompt's completions meet its keys in one product, each meets its completion's own keys in another, and one
softmax goes over both. Plain products, since a CPU's attention kernel takes many times their time where there
is one query a row.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from nonpareil.engines.attention import sign
from nonpareil.engines.branches import Forward, Prefilled
from nonpareil.engines.cache import InPlaceLayer

GROWTH = 64
"""Tokens by which the room for completions grows; a CPU attends over all of it, filled or not."""


class Places:
    """Where the samples of each prompt stand, and what of the keys is hidden: one for all layers.

    Args:
        prompt_of_row: of each sample, in rising order; each prompt has at least one.
        prompts: how many there are.
    """

    def __init__(self, prompt_of_row: Int[Tensor, " r"], prompts: int):
        """See the class."""
        first = torch.searchsorted(prompt_of_row, torch.arange(prompts, device=prompt_of_row.device))
        rank = torch.arange(len(prompt_of_row), device=prompt_of_row.device) - first[prompt_of_row]
        self.prompts, self.each = prompts, int(rank.max()) + 1
        """Prompts, and the places of each: as many as the largest group has samples."""
        self.uneven = prompts * self.each > len(prompt_of_row)
        self.place = prompt_of_row * self.each + rank
        self.sample = torch.zeros(prompts * self.each, dtype=torch.long, device=rank.device)
        self.sample[self.place] = torch.arange(len(rank), device=rank.device)

    def by_prompt(self, rows: Float[Tensor, "rk g n"], kv_heads: int) -> Float[Tensor, "bk mg n"]:
        """What belongs to samples and heads, by prompt, head and place; at an empty place stands any sample."""
        if self.each == 1:
            return rows
        each, groups, size = rows.unflatten(0, (-1, kv_heads)), rows.shape[1], rows.shape[2]
        placed = (each[self.sample] if self.uneven else each).unflatten(0, (self.prompts, self.each))
        return placed.transpose(1, 2).reshape(self.prompts * kv_heads, self.each * groups, size)

    def by_sample(self, placed: Float[Tensor, "bk mg n"], kv_heads: int) -> Float[Tensor, "..."]:
        """The other way round, with the first axis still taken apart: what is left to do is a copy."""
        if self.each == 1:
            return placed
        apart = placed.view(self.prompts, kv_heads, self.each, -1, placed.shape[-1]).transpose(1, 2)
        return apart.flatten(0, 1)[self.place] if self.uneven else apart


class Room:
    """How many tokens each completion has in the cache and has room for; one for all layers."""

    def __init__(self, budget: int, like: Tensor):
        """`like`: of the dtype and on the device of the keys."""
        self.budget, self.filled, self.size = budget, 0, 0
        self.whole = like.device.type == "cpu"
        """Whether to attend over all of the room: a CPU's product copies what is a part of a buffer."""
        self.hidden = like.new_zeros(1, 1, 0)

    def advance(self) -> None:
        """One more token."""
        self.filled += 1
        if self.filled > self.size:
            self.size = min(self.budget, self.size + GROWTH)
            self.hidden = self.hidden.new_full((1, 1, self.size), -torch.inf)
            self.hidden[..., : self.filled] = 0
        if self.whole:
            self.hidden[..., self.filled - 1] = 0


class SharedLayer(DynamicLayer):
    """One layer's keys and values: `prompt`, one row a prompt, and `keys` and `values`, one row a sample.

    What is not filled is zero: it is multiplied by a weight of zero.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, filled: InPlaceLayer, places: Places, room: Room, hidden: Float[Tensor, "b w"] | None):
        """`hidden`: what is added to the scores of a prompt's keys, -inf at its padding; None without padding."""
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.prompt = (filled.keys.contiguous(), filled.values.contiguous())
        self.places, self.room = places, room
        heads, rows = filled.keys.shape[1], len(places.place)
        self.hidden = None if hidden is None else hidden[:, None].repeat(1, heads, 1)
        self._hold(*(part.new_zeros(rows, part.shape[1], 0, part.shape[-1]) for part in self.prompt))
        self.unread = False
        """Whether keys were written that nothing has attended to."""

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        sign(keys, self)
        sign(values, self)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new token's states; returns the completions' buffers, which `attention.attend` knows.

        Raises:
            NotImplementedError: the states before were not attended to: the model has a way of its own.
        """
        if self.unread or key_states.shape[-2] != 1:
            raise NotImplementedError("the model attends in a way of its own")
        self.unread = True
        grown = self.room.size - self.keys.shape[-2]
        if grown > 0:
            self._hold(*(torch.nn.functional.pad(old, (0, 0, 0, grown)) for old in (self.keys, self.values)))
        at = self.room.filled - 1
        self.keys[:, :, at : at + 1], self.values[:, :, at : at + 1] = key_states, value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Of the text so far, prompt and completion."""
        return self.prompt[0].shape[-2] + self.room.filled - self.unread

    def attend(self, query: Float[Tensor, "r h 1 d"], scale: float) -> Float[Tensor, "r 1 h e"]:
        """What the queries of a step find: the mean of the values by the softmax of scale x query x key."""
        self.unread = False
        by_prompt, by_sample, room = self.places.by_prompt, self.places.by_sample, self.room
        rows, heads, _, dim = query.shape
        prompt_keys, prompt_values = self.prompt
        kv_heads, width = prompt_keys.shape[1:3]
        queries = query.reshape(rows * kv_heads, heads // kv_heads, dim)
        end = room.size if room.whole else room.filled
        keys, values = (part[:, :, :end].flatten(0, 1) for part in (self.keys, self.values))

        hidden = None if self.hidden is None else self.hidden.flatten(0, 1)[:, None]
        together = by_prompt(queries, kv_heads)
        to_prompt = by_sample(_scores(together, prompt_keys.flatten(0, 1), hidden, scale), kv_heads)
        to_own = _scores(queries, keys, room.hidden if room.whole else None, scale)
        scores = torch.cat([to_prompt, to_own.view(*to_prompt.shape[:-1], end)], -1)
        weights = _softmax(scores).view(*queries.shape[:-1], -1)
        found = torch.bmm(by_prompt(weights[..., :width], kv_heads), prompt_values.flatten(0, 1))
        found = by_sample(found, kv_heads).reshape(*queries.shape[:-1], -1)
        return torch.baddbmm(found, weights[..., width:], values).view(rows, 1, heads, -1)

    def take(self, rows: Int[Tensor, " r"], prompts: Int[Tensor, " b"], places: Places) -> None:
        """Only these samples, and these prompts, go on."""
        if len(prompts) < len(self.prompt[0]):
            self.prompt = (self.prompt[0][prompts], self.prompt[1][prompts])
            self.hidden = None if self.hidden is None else self.hidden[prompts]
        self.places = places
        self._hold(self.keys[rows], self.values[rows])


def _scores(queries: Tensor, keys: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """`[n, q, k]`: scale x `[n, q, d]` x `[n, k, d]`, and what hides some keys added."""
    if hidden is None:
        return torch.baddbmm(queries.new_zeros(()), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    return torch.baddbmm(hidden, queries, keys.transpose(1, 2), alpha=scale)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis, worked out in float32; a CPU is quicker when told so, with the same numbers."""
    if scores.device.type == "cpu":
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1)


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
        self._prompts = len(counts)
        self.lengths = prompts.lengths[self.prompt_of_row]
        self.room = self._split(prompts)

    def _split(self, prompts: Prefilled) -> Room:
        """Turn the cache of prompts into one of prompts and completions, layer by layer."""
        places = Places(self._here, self._prompts)
        first = self.cache.layers[0]
        assert isinstance(first, InPlaceLayer)
        filled = first.keys
        room, hidden = Room(prompts.budget, filled), None
        if prompts.padded:
            columns = torch.arange(prompts.width, device=prompts.lengths.device)
            padding = columns[None] < (prompts.width - prompts.lengths)[:, None]
            hidden = torch.zeros(padding.shape, dtype=filled.dtype, device=padding.device)
            hidden.masked_fill_(padding, -torch.inf)
        for i, layer in enumerate(self.cache.layers):
            assert isinstance(layer, InPlaceLayer)
            self.cache.layers[i] = SharedLayer(layer, places, room, hidden)
        return room

    def next(self, tokens: Int[Tensor, " r"], step: int) -> Float[Tensor, "r v"]:
        """Logits behind each sample's `step`-th token, which is written into the cache."""
        self.room.advance()
        return self.forward(tokens[:, None], None, (self.lengths + step)[:, None])[:, -1]

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on; prompts without any leave."""
        self.prompt_of_row, self.lengths = self.prompt_of_row[alive], self.lengths[alive]
        prompts, self._here = self._here[alive].unique(return_inverse=True)
        self._prompts = len(prompts)
        places = Places(self._here, self._prompts)
        for layer in self.cache.layers:
            assert isinstance(layer, SharedLayer)
            layer.take(alive, prompts, places)
