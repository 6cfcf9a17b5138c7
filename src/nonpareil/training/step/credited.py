"""A pass whose loss is made of candidate next tokens, at every position of stored completions."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.methods.credited import CreditedDraws, CreditedMethod, joined, next_tokens
from nonpareil.models.anchors import Anchor
from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.next_tokens import next_token_log_ratios
from nonpareil.training.step.batch import StepBatch


@dataclass(frozen=True)
class CreditedPasses:
    """Passes of policy and reference, for a `CreditedMethod`."""

    method: CreditedMethod
    anchor: Anchor
    """The reference, which never moves."""
    temperature: float
    autocast: Callable[[], AbstractContextManager[Any]]

    def losses(
        self,
        model: Any,
        batch: StepBatch,
        part: dict[int, list[int]],
        sequences: TokenSequences,
        sizes: list[int],
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """The loss of each of a pass's prompts, nats, and its first place without a number, as in `PromptLoss`.

        `part`: rows of the batch, and of each the completions that are trained on; `sequences` are theirs, of which
        `sizes` share a row.
        """
        assert isinstance(batch.draws, CreditedDraws)
        credits = [batch.draws.credits[row, place] for row, places in part.items() for place in places]
        token_ids = joined(credits, "token_ids", device_of(model)).long()
        reference: Any = getattr(self.anchor, "module", None)  # an adapter's is the policy without it
        with self.autocast():
            numbers = next_token_log_ratios(model, reference, sequences, token_ids, self.temperature, sizes)
        tokens = next_tokens(*numbers, credits)
        by_token = self.method.next_token_loss(tokens)
        if by_token.shape != tokens.prefix_values.shape:
            raise ConfigError(
                f"the loss of {type(self.method).__name__} has shape {list(by_token.shape)}, and must be one "
                f"number per position, {list(tokens.prefix_values.shape)}"
            )
        owner, at = _owners(part, credits, batch.width, by_token.device)
        counts = torch.tensor([len(places) for places in part.values()], device=by_token.device)
        losses = by_token.new_zeros(len(part)).index_add(0, owner, by_token) / counts
        bad = ~(tokens.log_ratio.detach().isfinite().all(-1) & tokens.kl_from_reference.detach().isfinite())
        first = torch.full((len(part),), torch.inf, device=by_token.device)
        first = first.scatter_reduce(0, owner[bad], at[bad], "amin")
        return losses, torch.where(first.isinf(), -1.0, first)

    def no_loss(self, model: Any) -> Tensor:
        """Zero, by way of every weight: what a process does whose rows have all had their passes."""
        reference: Any = getattr(self.anchor, "module", None)
        token_ids = torch.zeros(1, 1, dtype=torch.long, device=device_of(model))
        with self.autocast():
            log_ratio, kl = next_token_log_ratios(model, reference, TokenSequences([[0]], [[0]]), token_ids)
        return (log_ratio.sum() + kl.sum()) * 0.0


def _owners(
    part: dict[int, list[int]], credits: list[Any], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of each position the prompt, counted within the pass, and its place in the batch's rectangle of tokens."""
    places = [(owner, place) for owner, of_row in enumerate(part.values()) for place in of_row]
    lengths = torch.tensor([len(each) for each in credits])
    owners, starts = torch.tensor(places).T.repeat_interleave(lengths, dim=1)
    column = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return owners.to(device), (starts * width + column).float().to(device)
