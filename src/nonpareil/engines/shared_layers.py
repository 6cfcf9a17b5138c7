"""Keys and values of prompts, held once, and of the completions that share them; two ways to lay them out.

To the model, each completion is a row of its own that has one new token. Only attention knows better: the queries
of a prompt's completions meet its keys in one product. Plain products, since a CPU's attention kernel takes many
times their time where there is one query a row.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from nonpareil.engines.attention import sign
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

    def by_prompt(self, rows: Float[Tensor, "rk g n"], kv_heads: int) -> Float[Tensor, "bk mg n"]:
        """What belongs to samples and heads, by prompt, head and place; zero at an empty place."""
        if self.each == 1:
            return rows
        each, groups, size = rows.unflatten(0, (-1, kv_heads)), rows.shape[1], rows.shape[2]
        if self.uneven:  # not another's numbers: were they NaN, no mask would hide them
            each = each.new_zeros(self.prompts * self.each, *each.shape[1:]).index_copy_(0, self.place, each)
        placed = each.unflatten(0, (self.prompts, self.each))
        return placed.transpose(1, 2).reshape(self.prompts * kv_heads, self.each * groups, size)

    def by_sample(self, placed: Float[Tensor, "bk mg n"], kv_heads: int) -> Float[Tensor, "..."]:
        """The other way round, with the first axis still taken apart: what is left to do is a copy."""
        if self.each == 1:
            return placed
        apart = placed.view(self.prompts, kv_heads, self.each, -1, placed.shape[-1]).transpose(1, 2)
        return apart.flatten(0, 1)[self.place] if self.uneven else apart


class Room:
    """How many tokens each completion has in the cache and has room for, and which keys are hidden; for all layers.

    Args:
        padding: `[b, w]`, added to the scores of the prompts' keys: 0, or -inf where a prompt is padded.
        padded: whether any is.
        budget: most tokens of a completion.
    """

    def __init__(self, padding: Float[Tensor, "b w"], padded: bool, budget: int):
        """See the class."""
        self.padding, self.padded, self.budget = padding, padded, budget
        self.filled = self.size = 0
        self.whole = padding.device.type == "cpu"
        """Whether to attend over all of the room: a CPU's product copies what is a part of a buffer."""
        self._own: Tensor | None = None
        self._joint: dict[tuple[int, int], Tensor] = {}

    def advance(self, places: Places) -> None:
        """One more token, which its own completion sees."""
        self.filled += 1
        if self.filled > self.size:
            self.size = min(self.budget, self.size + GROWTH)
            self.forget()
        if self._own is not None:
            self._own[..., self.filled - 1] = 0
        for hidden in self._joint.values():
            self._show(hidden, places, self.filled - 1)

    def keep(self, prompts: Int[Tensor, " b"]) -> None:
        """Only these prompts go on."""
        self.padding = self.padding[prompts]
        self.forget()

    def forget(self) -> None:
        """What is hidden is to be worked out anew."""
        self._own = None
        self._joint.clear()

    @property
    def end(self) -> int:
        """Tokens of a completion's room to attend over."""
        return self.size if self.whole else self.filled

    def of_prompts(self, kv_heads: int) -> Float[Tensor, "bk 1 w"] | None:
        """For the keys of prompts alone."""
        return self.padding.repeat_interleave(kv_heads, 0)[:, None] if self.padded else None

    def of_own(self) -> Float[Tensor, "1 1 e"] | None:
        """For the keys of completions alone."""
        if not self.whole:
            return None
        if self._own is None:
            self._own = self.padding.new_full((1, 1, self.size), -torch.inf)
            self._own[..., : self.filled] = 0
        return self._own

    def of_both(self, places: Places, kv_heads: int, groups: int) -> Float[Tensor, "bk mg c"] | None:
        """For prompts and completions in one buffer; a completion sees its own tokens alone."""
        each, width = places.each, self.padding.shape[1]
        if each == 1:
            groups = 1  # the same for all, and then it need not be written out
            if not (self.padded or self.whole):
                return None
        if (kv_heads, groups) not in self._joint:
            shape = (places.prompts, kv_heads, each, groups, width + each * self.size)
            hidden = self.padding.new_full(shape, -torch.inf)
            hidden[..., :width] = self.padding[:, None, None, None]
            hidden = hidden.flatten(0, 1).flatten(1, 2)
            for step in range(self.filled):
                self._show(hidden, places, step)
            self._joint[kv_heads, groups] = hidden
        return self._joint[kv_heads, groups][..., : width + each * self.end]

    def _show(self, hidden: Tensor, places: Places, step: int) -> None:
        start = self.padding.shape[1] + step * places.each
        apart = hidden.unflatten(1, (places.each, -1))[..., start : start + places.each]
        apart.diagonal(dim1=1, dim2=3).zero_()


class SharedLayer(DynamicLayer):
    """One layer of a cache whose rows are samples, and whose prompts are held once. What is not filled is zero."""

    keys: Tensor
    values: Tensor

    def __init__(self, filled: InPlaceLayer, places: Places, room: Room):
        """`filled`: with the keys and values of the prompts, one a row."""
        super().__init__()
        self.lazy_initialization(filled.keys, filled.values)
        self.places, self.room, self.width = places, room, filled.keys.shape[-2]
        self.held = 0
        """Tokens of each completion that this layer has."""
        self.unread = False
        """Whether keys were written that nothing has attended to."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new token's states; returns the buffers, which `attention.attend` knows.

        Raises:
            NotImplementedError: the states before were not attended to: the model has a way of its own.
        """
        if self.unread or key_states.shape[-2] != 1:
            raise NotImplementedError("the model attends in a way of its own")
        self.unread, self.held = True, self.room.filled
        self._write(key_states, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Of the text so far, prompt and completion."""
        return self.width + self.held

    def attend(self, query: Float[Tensor, "r h 1 d"], scale: float) -> Float[Tensor, "r 1 h e"]:
        """What the queries of a step find: the mean of the values by the softmax of scale x query x key."""
        self.unread = False
        rows, heads, _, dim = query.shape
        kv_heads = self.keys.shape[1]
        return self._mix(query.reshape(rows * kv_heads, -1, dim), scale).view(rows, 1, heads, -1)

    @abstractmethod
    def take(self, rows: Int[Tensor, " r"], prompts: Int[Tensor, " b"], places: Places) -> None:
        """Only these samples, and these prompts, go on; `places` are theirs."""

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        sign(keys, self)
        sign(values, self)

    def _grow(self, tokens: int) -> None:
        """To room for so many."""
        if (more := tokens - self.keys.shape[-2]) > 0:
            self._hold(*(torch.nn.functional.pad(old, (0, 0, 0, more)) for old in (self.keys, self.values)))

    @abstractmethod
    def _write(self, key_states: Tensor, value_states: Tensor) -> None:
        """The new token's states, behind those before."""

    @abstractmethod
    def _mix(self, queries: Float[Tensor, "rk g d"], scale: float) -> Float[Tensor, "rk g e"]:
        """`attend`, of queries by sample and head."""


class JointLayer(SharedLayer):
    """Behind each prompt the tokens of all of its completions, step by step: two products, whose masked part is
    waste that grows with completions and their length.
    """

    def __init__(self, filled: InPlaceLayer, places: Places, room: Room):
        """See `SharedLayer`."""
        super().__init__(filled, places, room)
        self._hold(filled.keys.contiguous(), filled.values.contiguous())

    def _write(self, key_states: Tensor, value_states: Tensor) -> None:
        each = self.places.each
        self._grow(self.width + each * self.room.size)
        start = self.width + each * (self.room.filled - 1)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            kv_heads = states.shape[1]
            buffer.flatten(0, 1)[:, start : start + each] = self.places.by_prompt(
                states.flatten(0, 1), kv_heads
            )

    def _mix(self, queries: Float[Tensor, "rk g d"], scale: float) -> Float[Tensor, "rk g e"]:
        places, kv_heads = self.places, self.keys.shape[1]
        end = self.width + places.each * self.room.end
        keys, values = (part[:, :, :end].flatten(0, 1) for part in (self.keys, self.values))
        hidden = self.room.of_both(places, kv_heads, queries.shape[1])
        weights = _softmax(_scores(places.by_prompt(queries, kv_heads), keys, hidden, scale))
        return places.by_sample(torch.bmm(weights, values), kv_heads).reshape(*queries.shape[:-1], -1)

    def take(self, rows: Int[Tensor, " r"], prompts: Int[Tensor, " b"], places: Places) -> None:
        """See `SharedLayer`."""
        old, source = self.places.each, places.place.new_zeros(places.prompts * places.each)
        source[places.place] = (self.places.place % old)[rows]
        source = source.view(places.prompts, 1, 1, places.each, 1)

        def taken(buffer: Tensor) -> Tensor:
            kept = buffer[prompts]
            own = kept[:, :, self.width :].unflatten(2, (-1, old))
            index = source.expand(-1, *own.shape[1:3], -1, own.shape[-1])
            return torch.cat([kept[:, :, : self.width], own.gather(3, index).flatten(2, 3)], 2)

        self._hold(taken(self.keys), taken(self.values))
        self.places = places


class ApartLayer(SharedLayer):
    """Prompts in buffers of their own, one row a prompt, beside those of completions, one row a sample: each is
    attended to in a product of its own, with one softmax over both.
    """

    def __init__(self, filled: InPlaceLayer, places: Places, room: Room):
        """See `SharedLayer`."""
        super().__init__(filled, places, room)
        self.prompt = (filled.keys.contiguous(), filled.values.contiguous())
        rows = len(places.place)
        self._hold(*(part.new_zeros(rows, part.shape[1], 0, part.shape[-1]) for part in self.prompt))
        self.hidden = room.of_prompts(self.keys.shape[1])

    def _write(self, key_states: Tensor, value_states: Tensor) -> None:
        self._grow(self.room.size)
        at = self.room.filled - 1
        self.keys[:, :, at : at + 1], self.values[:, :, at : at + 1] = key_states, value_states

    def _mix(self, queries: Float[Tensor, "rk g d"], scale: float) -> Float[Tensor, "rk g e"]:
        by_prompt, by_sample, room = self.places.by_prompt, self.places.by_sample, self.room
        kv_heads, end = self.keys.shape[1], room.end
        prompt_keys, prompt_values = (part.flatten(0, 1) for part in self.prompt)
        keys, values = (part[:, :, :end].flatten(0, 1) for part in (self.keys, self.values))
        to_prompt = by_sample(
            _scores(by_prompt(queries, kv_heads), prompt_keys, self.hidden, scale), kv_heads
        )
        to_own = _scores(queries, keys, room.of_own(), scale)
        scores = torch.cat([to_prompt, to_own.view(*to_prompt.shape[:-1], end)], -1)
        weights = _softmax(scores).view(*queries.shape[:-1], -1)
        found = torch.bmm(by_prompt(weights[..., : self.width], kv_heads), prompt_values)
        found = by_sample(found, kv_heads).reshape(*queries.shape[:-1], -1)
        return torch.baddbmm(found, weights[..., self.width :], values)

    def take(self, rows: Int[Tensor, " r"], prompts: Int[Tensor, " b"], places: Places) -> None:
        """See `SharedLayer`."""
        if len(prompts) < len(self.prompt[0]):
            self.prompt = (self.prompt[0][prompts], self.prompt[1][prompts])
            self.hidden = self.room.of_prompts(self.keys.shape[1])
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
