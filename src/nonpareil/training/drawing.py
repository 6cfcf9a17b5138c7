"""Where a step's completions come from: policy and anchor as they are now, however their weights are held."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.transformers import DrawRequest, TransformersEngine
from nonpareil.models.adapters import POLICY, REFERENCE, AdapterAnchor, plain_model, row_adapters
from nonpareil.models.anchors import Anchor, WorkingCopy
from nonpareil.models.logprobs import (
    TokenSequences,
    completion_logprobs,
    output_head_is_plain,
    token_budget_batches,
)
from nonpareil.records import Draws, Prompt, SamplingParams
from nonpareil.training.config import DistillationConfig


class Drawing(Protocol):
    """Draws from policy and anchor, and scores under either. Weights change between steps, never within one."""

    def begin_step(self) -> None:
        """Policy and anchor may have moved since the last draw."""
        ...

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> tuple[list[Draws], list[Draws]]:
        """k completions of the policy and m of the anchor for each prompt; k or m may be 0."""
        ...

    def logprobs(self, role: str, sequences: TokenSequences) -> Tensor:
        """log-prob of each completion `[s]` under "policy" or "anchor", nats, temperature applied."""
        ...


class CopyDrawing:
    """One working copy in the compute type takes on the policy's weights, then the anchor's."""

    def __init__(
        self, policy: PreTrainedModel, anchor: Anchor | None, tokenizer: Tokenizer, config: DistillationConfig
    ):
        self.sources: dict[str, nn.Module] = {"policy": policy}
        if anchor is not None:
            self.sources["anchor"] = anchor.module
        self.config = config
        self.working = WorkingCopy(policy, config.compute_dtype(policy.dtype))
        self.engine = TransformersEngine(
            self.working.model, tokenizer, max_tokens_per_batch=config.max_tokens_per_batch
        )
        self._holds = ""

    def begin_step(self) -> None:
        """See `Drawing`."""
        self._holds = ""

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> tuple[list[Draws], list[Draws]]:
        """See `Drawing`."""
        ours = self._draw("policy", prompts, k, policy)
        return ours, self._draw("anchor", prompts, m, anchor)

    def logprobs(self, role: str, sequences: TokenSequences) -> Tensor:
        """See `Drawing`."""
        self._take(role)
        return sequence_logprobs(self.working.model, sequences, self.config)

    def _draw(
        self, role: str, prompts: Sequence[Prompt], count: int, sampling: SamplingParams
    ) -> list[Draws]:
        if not count:
            return no_draws(prompts)
        self._take(role)
        return self.engine.draw(prompts, count, sampling)

    def _take(self, role: str) -> None:
        if self._holds != role:
            self.working.load(self.sources[role])
            self._holds = role


class AdapterDrawing:
    """Policy and anchor are adapters on one base: one pass draws from both, and no weight is copied."""

    def __init__(
        self, policy: nn.Module, anchor: Anchor | None, tokenizer: Tokenizer, config: DistillationConfig
    ):
        self.model = plain_model(policy)
        output_head_is_plain(self.model)  # asks with one row of its own, and so before rows have adapters
        self.config = config
        role = cast(AdapterAnchor, anchor).role if anchor is not None else REFERENCE
        self.adapters = {"policy": POLICY, "anchor": role}
        self.engine = TransformersEngine(
            self.model, tokenizer, max_tokens_per_batch=config.max_tokens_per_batch
        )

    def begin_step(self) -> None:
        """See `Drawing`; the adapters are drawn from where they are trained."""

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> tuple[list[Draws], list[Draws]]:
        """See `Drawing`."""
        requests = {
            role: DrawRequest(prompts, count, sampling, self.adapters[role])
            for role, count, sampling in (("policy", k, policy), ("anchor", m, anchor))
            if count
        }
        drawn = dict(zip(requests, self.engine.draw_together(list(requests.values())), strict=True))
        return drawn.get("policy", no_draws(prompts)), drawn.get("anchor", no_draws(prompts))

    def logprobs(self, role: str, sequences: TokenSequences) -> Tensor:
        """See `Drawing`."""
        training = self.model.training
        self.model.eval()
        try:
            return sequence_logprobs(self.model, sequences, self.config, self.adapters[role])
        finally:
            self.model.train(training)


def no_draws(prompts: Sequence[Prompt]) -> list[Draws]:
    """An empty group for each prompt."""
    return [Draws([], [], [], []) for _ in prompts]


@torch.no_grad()
def sequence_logprobs(
    model: PreTrainedModel, sequences: TokenSequences, config: DistillationConfig, adapter: str = ""
) -> Tensor:
    """log-prob of each completion `[s]`, float32 on the CPU, in passes within the token budget."""
    values = torch.empty(len(sequences))
    with row_adapters(model) if adapter else nullcontext() as routes:
        for rows in token_budget_batches(sequences.lengths(), config.max_tokens_per_batch):
            if routes is not None:
                routes.names = [adapter] * len(rows)
            part = completion_logprobs(model, sequences.select(rows), config.temperature)
            values[rows] = part.float().cpu()
    return values
