"""How the completions of a batch share their prompts: several samples of one prompt are queries of one row.

A row of the batch is a prompt with up to `BRANCHES` completions behind it. Its keys and values are those of the
prompt, once, and then, token by token, those of each branch; a mask lets a branch see the prompt and itself. One
branch a row is the usual way to draw, which every model takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from nonpareil.engines.cache import InPlaceLayer, expand_cache

BRANCHES = 16
"""Most completions in one row: each looks at the keys of all, so that more would cost more than they save."""
MOST_IDLE = 0.25
"""Share of branches that may stand empty, where some prompts have fewer samples than others."""

Forward = Callable[..., Float[Tensor, "b s v"]]
"""Of token ids, attention mask (2D, 4D or none), positions, and of how many tokens, counted from the end, the
logits are wanted (all, if not told)."""


@dataclass(frozen=True)
class Prefilled:
    """Prompts whose keys and values are in the cache, one a row, padded on the left to one width."""

    cache: DynamicCache
    lengths: Int[Tensor, " b"]
    width: int
    budget: int
    """Most tokens of a completion."""

    @property
    def padded(self) -> bool:
        """Whether some row has padding; without, attention needs no mask and takes its fast path."""
        return bool((self.lengths < self.width).any())


def branches_for(counts: list[int], most: int) -> int:
    """How many branches a row gets, of prompts with so many samples each; 1 where sharing would not pay."""
    largest = max(counts)
    branches = -(-largest // -(-largest // most))  # of as few rows as there can be, evenly
    rows = sum(-(-count // branches) for count in counts)
    return branches if rows * branches * (1 - MOST_IDLE) <= sum(counts) else 1


class Branches:
    """The samples of a batch as branches of its rows; where each sample lies, and what its next token follows."""

    def __init__(
        self, forward: Forward, prompts: Prefilled, counts: list[int], branches: int, dtype: torch.dtype
    ):
        """`counts`: samples of each prompt; `branches`: of each row, 1 for a row of its own a sample."""
        self.forward, self.cache, self.dtype = forward, prompts.cache, dtype
        self.width, self.budget, self.padded = prompts.width, prompts.budget, prompts.padded
        self.filled = 0
        """Tokens that each branch has in the cache."""
        device = prompts.lengths.device
        rows_of = [-(-count // branches) for count in counts]
        self.prompt_of_row = torch.repeat_interleave(
            torch.arange(len(counts), device=device), torch.tensor(rows_of, device=device)
        )
        places = [divmod(i, branches) for count in counts for i in range(count)]
        firsts = torch.tensor([0, *rows_of[:-1]]).cumsum(0).tolist()
        offsets = [first for first, count in zip(firsts, counts, strict=True) for _ in range(count)]
        self.row = torch.tensor([offset + row for offset, (row, _) in zip(offsets, places, strict=True)])
        self.row = self.row.to(device)
        self.branch = torch.tensor([branch for _, branch in places], device=device)
        self.lengths = prompts.lengths[self.prompt_of_row]
        self.branches = branches
        expand_cache(self.cache, self.prompt_of_row, self.width + self.budget * branches)
        self._make_mask()

    def next(self, tokens: Int[Tensor, " r"], step: int) -> Float[Tensor, "r v"]:
        """Logits behind each sample's `step`-th token, which is written into the cache."""
        ids = tokens.new_zeros(len(self.lengths), self.branches)
        ids[self.row, self.branch] = tokens
        positions = (self.lengths + step)[:, None].expand_as(ids)
        self.filled += 1
        end = self.width + self.filled * self.branches
        mask = None if self.mask is None else self.mask[..., :end]
        logits = self.forward(ids, mask, positions)
        if len(tokens) == ids.numel():  # sorted by row and branch, as they were made
            return logits.flatten(0, 1)
        return logits[self.row, self.branch]

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on: rows without any leave, and the others close up where that makes room."""
        self.row, self.branch = self.row[alive], self.branch[alive]
        rows, self.row = self.row.unique(return_inverse=True)
        rank = self._rank()
        branches = int(rank.max()) + 1
        if len(rows) == len(self.lengths) and branches == self.branches:
            return
        source = torch.zeros(len(rows), branches, dtype=torch.long, device=rank.device)
        source[self.row, rank] = self.branch
        self._move(rows, source)
        self.prompt_of_row, self.lengths = self.prompt_of_row[rows], self.lengths[rows]
        self.branch, self.branches = rank, branches
        self._make_mask()

    def repeat(self, rows: Int[Tensor, " r"]) -> None:
        """These samples go on, in rising order, one of them perhaps several times; each has a row of its own."""
        assert self.branches == 1
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.prompt_of_row, self.lengths = self.prompt_of_row[rows], self.lengths[rows]
        self.row, self.branch = torch.arange(len(rows), device=rows.device), torch.zeros_like(rows)
        self._make_mask()

    def _rank(self) -> Int[Tensor, " r"]:
        """Of each sample among those of its row; they come row by row."""
        index = torch.arange(len(self.row), device=self.row.device)
        first = torch.searchsorted(self.row.contiguous(), self.row.contiguous())
        return index - first

    def _move(self, rows: Int[Tensor, " b"], source: Int[Tensor, "b s"]) -> None:
        """Rows of the cache that stay, each with the branches that stay."""
        if self.branches == 1:
            self.cache.reorder_cache(rows)  # type: ignore[arg-type]
            return
        for layer in self.cache.layers:
            assert isinstance(layer, InPlaceLayer)
            layer.take(rows, self.width, source, self.branches, self.width + self.budget * source.shape[1])

    def _make_mask(self) -> None:
        """2D where a row is one sample, None where it has no padding either; else what each branch may see."""
        columns = torch.arange(self.width + self.budget * self.branches, device=self.lengths.device)
        real = columns[None] >= (self.width - self.lengths)[:, None]
        if self.branches == 1:
            self.mask = real.long() if self.padded else None
            return
        branch = torch.arange(self.branches, device=columns.device)
        own = (columns[None] < self.width) | ((columns[None] - self.width) % self.branches == branch[:, None])
        seen: Bool[Tensor, "b s c"] = real[:, None] & own[None]
        hidden = torch.finfo(self.dtype).min
        self.mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, hidden)
        self.mask = self.mask[:, None]
