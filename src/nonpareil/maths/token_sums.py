"""What each token's occurrences were worth, summed by fold of the prompts: a vocabulary tilt is counted from it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.maths.vocabulary_tilt import mean_advantages

DRAWN_DAMPING = 10.0
"""Occurrences of no advantage beside a token's own, where a whole completion's quantile is each token's credit."""
CREDITED_DAMPING = 0.3
"""The same where a value says what each candidate is worth, which has far less noise."""


@dataclass(frozen=True)
class TokenSums:
    """Advantages and counts of each token in each fold; float64, on the CPU."""

    advantages: Float[Tensor, "f v"]
    counts: Float[Tensor, "f v"]
    damping: float

    @classmethod
    def zeros(cls, folds: int, vocabulary: int, damping: float) -> "TokenSums":
        """Of no occurrence yet."""
        advantages = torch.zeros(folds, vocabulary, dtype=torch.float64)
        return cls(advantages, torch.zeros_like(advantages), damping)

    def add(
        self,
        fold: int,
        token_ids: Int[Tensor, " n"],
        weights: Float[Tensor, " n"],
        advantages: Float[Tensor, " n"],
    ) -> None:
        """Count n occurrences, each so many times as its weight says, with its advantage in nats."""
        self.advantages[fold].index_add_(0, token_ids.long(), weights.double() * advantages.double())
        self.counts[fold].index_add_(0, token_ids.long(), weights.double())

    def keep(self, tokens: Iterable[int]) -> None:
        """Let these tokens stay as they are; those that are none of the vocabulary are passed over."""
        self.advantages[:, [token for token in tokens if token < self.advantages.shape[1]]] = 0

    def tilt(self) -> Float[Tensor, " v"]:
        """b, nats, from all folds."""
        return mean_advantages(self.advantages.sum(0), self.counts.sum(0), self.damping)

    def tilts_without(self) -> Float[Tensor, "f v"]:
        """For each fold the b that all others give."""
        advantages, counts = (each.sum(0) - each for each in (self.advantages, self.counts))
        return mean_advantages(advantages, counts, self.damping)
