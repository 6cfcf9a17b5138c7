"""A penalty on tokens that prompt or completion have already, as transformers and vLLM apply it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Repetitions:
    """Which tokens each row of a batch has, and what that makes of its logits."""

    def __init__(self, penalty: float, prompts: Sequence[Sequence[int]], logits: Float[Tensor, "r v"]):
        """`prompts`: token ids of each row; padding is none of them."""
        self.penalty = penalty
        self.seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for row, ids in enumerate(prompts):
            self.seen[row, torch.tensor(list(ids), dtype=torch.long, device=logits.device)] = True

    def applied(self, logits: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """The logits, before temperature: of tokens seen, positive ones divided and others multiplied."""
        logits = logits.float()
        penalised = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(self.seen, penalised, logits)

    def add(self, tokens: Int[Tensor, " r"]) -> None:
        """One more token of each row."""
        self.seen.scatter_(1, tokens[:, None], True)

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these rows go on."""
        self.seen = self.seen[alive]
