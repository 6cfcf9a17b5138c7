"""Where a step's completions come from: policy and anchor as they are now, however their weights are held."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.models.adapter_rows import row_adapters
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, row_batches
from nonpareil.models.packing_check import per_row
from nonpareil.records import Draws, Prompt, SamplingParams

if TYPE_CHECKING:
    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.engines.vllm.server import VLLMServerEngine


@dataclass(frozen=True)
class ActorDraws:
    """What policy and anchor drew for some prompts."""

    policy: list[Draws]
    anchor: list[Draws]
    sampler_logprobs: list[list[list[float]]] | None = None
    """Of the policy's tokens, in the words of an engine that is not the trainer's; None where it is."""


class Scorers(Protocol):
    """Scores under policy and anchor as they are now. Weights change between steps, never within one.

    With several processes, all call each of these together.
    """

    adapters: dict[str, str]
    """By role ("policy", "anchor") the adapter that it is; "" where it is a whole model."""
    anchor_moves: bool

    def begin_step(self) -> None:
        """Policy and anchor may have moved since the last draw."""
        ...

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """log-probs of each completion's tokens under "policy" or "anchor", float32 nats, on the CPU."""
        ...

    def hand_over(self, role: str, engine: "VLLMEngine | VLLMServerEngine") -> None:
        """Give a role's model to another engine; the first process does, from all of them where shards are."""
        ...


class Actors(Protocol):
    """Draws from policy and anchor as they are now, and scores under either; see `Scorers`."""

    on_progress: Callable[[int, int], None] | None
    """Told of groups (the policy's or the anchor's, of one prompt) and tokens as they are drawn."""

    def begin_step(self) -> None:
        """Policy and anchor may have moved since the last draw."""
        ...

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """As `Scorers.token_logprobs`."""
        ...

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> ActorDraws:
        """k completions of the policy and m of the anchor for each prompt; k or m may be 0.

        Those from logits that are no numbers are among them, with such log-probs.
        """
        ...

    def release(self) -> None:
        """End what draws beside the trainer, and holds memory for it; nothing can be drawn afterwards."""
        ...


def no_draws(prompts: Sequence[Prompt]) -> list[Draws]:
    """An empty group for each prompt."""
    return [Draws([], [], [], []) for _ in prompts]


def scored(
    scorers: Scorers, role: str, prompts: Sequence[Prompt], drawn: Sequence[Draws], temperature: float
) -> list[Draws]:
    """The draws with log-probs as `Scorers.token_logprobs` has them, in place of those that drew them.

    So the policy's are scored by the same passes as the anchor's: where the two are one, their log-ratio is 0.
    Drawn token by token in bfloat16 they differ by a tenth of a nat in 40 tokens, a pull that is only rounding.
    """
    values = iter(scorers.token_logprobs(role, TokenSequences.of(prompts, drawn), temperature))
    return [replace(d, logprobs=[next(values).tolist() for _ in d.completions]) for d in drawn]


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel, sequences: TokenSequences, temperature: float, budget: int, adapter: str = ""
) -> list[Tensor]:
    """log-probs of each completion's tokens, float32 on the CPU, in passes of at most `budget` tokens."""
    values: list[Tensor] = [torch.empty(0)] * len(sequences)
    together = per_row(model, sequences, budget)
    with row_adapters(model) if adapter else nullcontext() as routes:
        for rows in row_batches(sequences, together, budget):
            if routes is not None:
                routes.names = [adapter] * len(rows)
            members, sizes = [i for row in rows for i in row], [len(row) for row in rows]
            part = completion_token_logprobs(model, sequences.select(members), temperature, sizes)
            for member, logprobs in zip(members, part.float().cpu(), strict=True):
                values[member] = logprobs[: len(sequences.completion_ids[member])]
    return values
