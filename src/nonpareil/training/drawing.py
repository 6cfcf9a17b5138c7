"""Where a step's completions come from: policy and anchor as they are now, however their weights are held."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.batches import DrawRequest
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.adapters import (
    POLICY,
    REFERENCE,
    AdapterAnchor,
    plain_model,
    row_adapters,
    save_adapter,
)
from nonpareil.models.anchors import Anchor, WorkingCopy
from nonpareil.models.distributed import process_index
from nonpareil.models.logprobs import (
    TokenSequences,
    completion_token_logprobs,
    output_head_is_plain,
    token_budget_batches,
)
from nonpareil.models.sharding import is_empty
from nonpareil.records import Draws, Prompt, SamplingParams
from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.engines.vllm import VLLMEngine
    from nonpareil.engines.vllm_server import VLLMServerEngine


@dataclass(frozen=True)
class Drawn:
    """What policy and anchor drew for some prompts."""

    policy: list[Draws]
    anchor: list[Draws]
    sampler_logprobs: list[list[list[float]]] | None = None
    """Of the policy's tokens, in the words of an engine that is not the trainer's; None where it is."""


class Scoring(Protocol):
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


class Drawing(Protocol):
    """Draws from policy and anchor as they are now, and scores under either; see `Scoring`."""

    def begin_step(self) -> None:
        """Policy and anchor may have moved since the last draw."""
        ...

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """As `Scoring.token_logprobs`."""
        ...

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> Drawn:
        """k completions of the policy and m of the anchor for each prompt; k or m may be 0.

        Those from logits that are no numbers are among them, with such log-probs.
        """
        ...


class CopyDrawing:
    """One working copy in the compute type takes on the policy's weights, then the anchor's."""

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
        self._holds = ""

    def begin_step(self) -> None:
        """See `Drawing`."""
        self._holds = ""

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> Drawn:
        """See `Drawing`."""
        ours = self._draw("policy", prompts, k, policy)
        if k and self.working.model.dtype != torch.float32:
            ours = scored(self, "policy", prompts, ours, policy.temperature)
        return Drawn(ours, self._draw("anchor", prompts, m, anchor))

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """See `Drawing`."""
        return token_logprobs(self.take(role), sequences, temperature, self.config.max_tokens_per_batch)

    def hand_over(self, role: str, engine: "VLLMEngine | VLLMServerEngine") -> None:
        """See `Scoring`."""
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
        return self.engine.draw(prompts, count, sampling)

    def take(self, role: str) -> PreTrainedModel:
        """The working copy with the weights of "policy" or "anchor"."""
        if self._holds != role:
            self.working.load(self.sources[role])
            self._holds = role
        return self.working.model


class AdapterDrawing:
    """Policy and anchor are adapters on one base: one pass draws from both, and no weight is copied."""

    def __init__(
        self, policy: nn.Module, anchor: Anchor | None, tokenizer: Tokenizer, config: DistillationConfig
    ):
        self.adapted: Any = policy
        self.model = plain_model(policy)
        self.anchor_moves = anchor is not None and anchor.moves
        output_head_is_plain(self.model)  # asks with one row of its own, and so before rows have adapters
        self.config = config
        role = cast(AdapterAnchor, anchor).role if anchor is not None else REFERENCE
        self.adapters = {"policy": POLICY, "anchor": role}
        self.engine = TransformersEngine(
            self.model, tokenizer, max_tokens_per_batch=config.max_tokens_per_batch, checked=False
        )
        self.engine.check(POLICY)

    def begin_step(self) -> None:
        """See `Drawing`; the adapters are drawn from where they are trained."""

    def draw(
        self, prompts: Sequence[Prompt], k: int, m: int, policy: SamplingParams, anchor: SamplingParams
    ) -> Drawn:
        """See `Drawing`."""
        requests = {
            role: DrawRequest(prompts, count, sampling, self.adapters[role])
            for role, count, sampling in (("policy", k, policy), ("anchor", m, anchor))
            if count
        }
        drawn = dict(zip(requests, self.engine.draw_together(list(requests.values())), strict=True))
        if k and self.model.dtype != torch.float32:
            drawn["policy"] = scored(self, "policy", prompts, drawn["policy"], policy.temperature)
        return Drawn(drawn.get("policy", no_draws(prompts)), drawn.get("anchor", no_draws(prompts)))

    def token_logprobs(self, role: str, sequences: TokenSequences, temperature: float) -> list[Tensor]:
        """See `Drawing`."""
        training, budget = self.model.training, self.config.max_tokens_per_batch
        self.model.eval()
        try:
            return token_logprobs(self.model, sequences, temperature, budget, self.adapters[role])
        finally:
            self.model.train(training)

    def hand_over(self, role: str, engine: "VLLMEngine | VLLMServerEngine") -> None:
        """See `Drawing`."""
        name = self.adapters[role]
        with tempfile.TemporaryDirectory(prefix="nonpareil-adapter-") as folder:
            saved = save_adapter(self.adapted, name, Path(folder))
            cast("VLLMEngine", engine).push_adapter(name, saved)  # a server with adapters is refused


def scored(
    scoring: Scoring, role: str, prompts: Sequence[Prompt], drawn: Sequence[Draws], temperature: float
) -> list[Draws]:
    """The draws with log-probs as `Scoring.token_logprobs` has them, in place of those that drew them.

    So the policy's are scored by the same passes as the anchor's: where the two are one, their log-ratio is 0.
    Drawn token by token in bfloat16 they differ by a tenth of a nat in 40 tokens, a pull that is only rounding.
    """
    values = iter(scoring.token_logprobs(role, TokenSequences.of(prompts, drawn), temperature))
    return [replace(d, logprobs=[next(values).tolist() for _ in d.completions]) for d in drawn]


def no_draws(prompts: Sequence[Prompt]) -> list[Draws]:
    """An empty group for each prompt."""
    return [Draws([], [], [], []) for _ in prompts]


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel, sequences: TokenSequences, temperature: float, budget: int, adapter: str = ""
) -> list[Tensor]:
    """log-probs of each completion's tokens, float32 on the CPU, in passes of at most `budget` tokens."""
    values: list[Tensor] = [torch.empty(0)] * len(sequences)
    with row_adapters(model) if adapter else nullcontext() as routes:
        for rows in token_budget_batches(sequences.lengths(), budget):
            if routes is not None:
                routes.names = [adapter] * len(rows)
            part = completion_token_logprobs(model, sequences.select(rows), temperature).float().cpu()
            for row, logprobs in zip(rows, part, strict=True):
                values[row] = logprobs[: len(sequences.completion_ids[row])]
    return values
