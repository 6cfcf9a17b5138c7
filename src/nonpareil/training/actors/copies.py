"""Policy and anchor as copies: one working copy takes on the weights of either."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.anchors import Anchor, WorkingCopy
from nonpareil.models.distributed import process_index
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.sharding import is_empty, is_sharded
from nonpareil.records import Draws, Prompt, SamplingParams
from nonpareil.training.actors.base import ActorDraws, no_draws, scored, token_logprobs
from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.engines.vllm.server import VLLMServerEngine


class CopiedActors:
    """One working copy in the compute type takes on the policy's weights, then the anchor's."""

    on_progress: Callable[[int, int], None] | None = None

    def __init__(
        self, policy: PreTrainedModel, anchor: Anchor | None, tokenizer: Tokenizer, config: DistillationConfig
    ):
        self.adapters = {"policy": "", "anchor": ""}
        self.anchor_moves = anchor is not None and anchor.moves
        self.sources: dict[str, nn.Module] = {"policy": policy}
        if anchor is not None:
            self.sources["anchor"] = anchor.module
        self.config = config
        self.working = WorkingCopy(policy, config.compute_dtype(policy.dtype), config.device)
        self._checked = not is_empty(policy)  # else at the first draw, when the shards have been read
        self.engine = TransformersEngine(
            self.working.model,
            tokenizer,
            max_tokens_per_batch=config.max_tokens_per_batch,
            checked=self._checked,
        )
        self.engine.keeps_not_finite = True  # a step leaves such prompts out
        if self._checked and not is_sharded(policy):
            # A step draws before there are gradients, which are in float32.
            self.engine.packing.spare_bytes = 4 * sum(
                p.numel() for p in policy.parameters() if p.requires_grad
            )
        self._holds = ""

    def begin_step(self) -> None:
        """See `Actors`."""
        self._holds = ""

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> ActorDraws:
        """See `Actors`."""
        ours = self._draw("policy", prompts, k, policy)
        if k and self.working.model.dtype != torch.float32:
            ours = scored(self, "policy", prompts, ours, policy.temperature)
        return ActorDraws(ours, self._draw("anchor", prompts, m, anchor))

    def release(self) -> None:
        """See `Actors`; what draws is in the trainer's own process, and goes with it."""

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """See `Actors`."""
        return token_logprobs(self.take(role), sequences, temperature, self.config.max_tokens_per_batch)

    def hand_over(self, role: str, engine: "VLLMEngine | VLLMServerEngine") -> None:
        """See `Scorers`."""
        weights = self.take(role).state_dict()
        if process_index() == 0:
            engine.push_weights(weights.items())

    def _draw(
        self, role: str, prompts: Sequence[Prompt], count: int, sampling: SamplingParams
    ) -> list[Draws]:
        if not count:
            return no_draws(prompts)
        self.take(role)
        if not self._checked:
            self.engine.check()
            self._checked = True
        return self.engine.draw(prompts, count, sampling, self.on_progress)

    def take(self, role: str) -> PreTrainedModel:
        """The working copy with the weights of "policy" or "anchor"."""
        if self._holds != role:
            self.working.load(self.sources[role])
            self._holds = role
        return self.working.model
