"""The rows of one batch of draws: which are running, what each has drawn."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.records import FinishReason

RETIRE_BELOW = 0.75
"""Finished rows leave the batch once fewer than this share is still running: compacting copies the cache."""


@dataclass(frozen=True)
class Completion:
    """One completion as it was drawn."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


@dataclass
class Rows:
    """The rows of a batch that are still in the cache, and everything drawn so far."""

    keys: np.ndarray
    end_ids: Int[Tensor, " e"]
    tokens: list[Tensor] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)
    members: list[Tensor] = field(default_factory=list)
    """Of each step, the original rows its tokens belong to."""
    ended: set[int] = field(default_factory=set)
    """Original rows that ended without an end token."""

    def __post_init__(self) -> None:
        self.count = len(self.keys)
        self.here = torch.arange(self.count, device=self.end_ids.device)
        self.done = torch.zeros(self.count, dtype=torch.bool, device=self.end_ids.device)

    def record(self, tokens: Int[Tensor, " r"], logprobs: Float[Tensor, " r"]) -> Int[Tensor, " r"]:
        """Keep one step's draws of the rows not finished; returns the tokens to feed back."""
        running = ~self.done
        self.tokens.append(tokens[running])
        self.logprobs.append(logprobs[running])
        self.members.append(self.here[running])
        self.done = self.done | torch.isin(tokens, self.end_ids)
        return tokens

    def end(self, members: Collection[int]) -> None:
        """These of the original rows have ended by what they say."""
        if members:
            self.ended.update(members)
            self.done |= torch.isin(self.here, torch.tensor(sorted(members), device=self.here.device))

    def all_done(self) -> bool:
        """Whether every row has drawn an end token."""
        return bool(self.done.all())

    def retire(self) -> Int[Tensor, " alive"] | None:
        """Drop the finished rows if that pays; returns the positions that stay, or None for all."""
        alive = (~self.done).nonzero()[:, 0]
        if len(alive) > RETIRE_BELOW * len(self.done):
            return None
        self.keys = self.keys[alive.cpu().numpy()]
        self.here, self.done = self.here[alive], self.done[alive]
        return alive

    def completions(self) -> list[Completion]:
        """Everything drawn, one completion an original row, in their order."""
        ids: list[list[int]] = [[] for _ in range(self.count)]
        logprobs: list[list[float]] = [[] for _ in range(self.count)]
        for members, tokens, values in zip(self.members, self.tokens, self.logprobs, strict=True):
            for row, token, value in zip(members.tolist(), tokens.tolist(), values.tolist(), strict=True):
                ids[row].append(token)
                logprobs[row].append(value)
        ends = set(self.end_ids.tolist())
        return [
            Completion(tokens, values, "stop" if tokens[-1] in ends or row in self.ended else "length")
            for row, (tokens, values) in enumerate(zip(ids, logprobs, strict=True))
        ]


def left_pad(rows: list[list[int]], device: torch.device) -> tuple[Int[Tensor, "b t"], Int[Tensor, " b"]]:
    """Token ids padded on the left to one width, and each row's length."""
    width = max(map(len, rows))
    # The id under the padding is never seen: masks come from lengths.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)
