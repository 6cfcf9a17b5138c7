"""Policy and anchor as two adapters over one base: rows of one batch."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.batches import DrawRequest
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.adapter_rows import takes_one_adapter
from nonpareil.models.adapters import POLICY, REFERENCE, AdapterAnchor, plain_model, save_adapter
from nonpareil.models.anchors import Anchor
from nonpareil.models.logprobs import TokenSequences, output_head_is_plain
from nonpareil.records import Prompt, SamplingParams
from nonpareil.training.actors.base import ActorDraws, no_draws, scored, token_logprobs
from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.engines.vllm.server import VLLMServerEngine


class AdapterActors:
    """Policy and anchor are adapters on one base: one pass draws from both, and no weight is copied."""

    on_progress: Callable[[int, int], None] | None = None

    def __init__(
        self, policy: nn.Module, anchor: Anchor | None, tokenizer: Tokenizer, config: DistillationConfig
    ):
        self.adapted: Any = policy
        self.model = plain_model(policy)
        self.anchor_moves = anchor is not None and anchor.moves
        output_head_is_plain(self.model)  # asks with one row of its own, and so before rows have adapters
        self.config = config
        role = cast(AdapterAnchor, anchor).role if anchor is not None else REFERENCE
        self.one_by_one = takes_one_adapter(self.model)
        self.adapters = {"policy": POLICY, "anchor": role}
        self.engine = TransformersEngine(
            self.model, tokenizer, max_tokens_per_batch=config.max_tokens_per_batch, checked=False
        )
        self.engine.check(POLICY)

    def begin_step(self) -> None:
        """See `Actors`; the adapters are drawn from where they are trained."""

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> ActorDraws:
        """See `Actors`."""
        requests = {
            role: DrawRequest(prompts, count, sampling, self.adapters[role])
            for role, count, sampling in (("policy", k, policy), ("anchor", m, anchor))
            if count
        }
        asked = [[each] for each in requests.values()] if self.one_by_one else [list(requests.values())]
        groups = [drawn for some in asked for drawn in self.engine.draw_together(some, self.on_progress)]
        drawn = dict(zip(requests, groups, strict=True))
        if k and self.model.dtype != torch.float32:
            drawn["policy"] = scored(self, "policy", prompts, drawn["policy"], policy.temperature)
        return ActorDraws(drawn.get("policy", no_draws(prompts)), drawn.get("anchor", no_draws(prompts)))

    def release(self) -> None:
        """See `Actors`; what draws is in the trainer's own process, and goes with it."""

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """See `Actors`."""
        training, budget = self.model.training, self.config.max_tokens_per_batch
        self.model.eval()
        try:
            return token_logprobs(self.model, sequences, temperature, budget, self.adapters[role])
        finally:
            self.model.train(training)

    def hand_over(self, role: str, engine: "VLLMEngine | VLLMServerEngine") -> None:
        """See `Actors`."""
        name = self.adapters[role]
        with tempfile.TemporaryDirectory(prefix="nonpareil-adapter-") as folder:
            saved = save_adapter(self.adapted, name, Path(folder))
            cast("VLLMEngine", engine).push_adapter(name, saved)  # a server with adapters is refused
