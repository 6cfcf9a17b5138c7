"""Draw completions with any causal language model of transformers.

The prompt is prefilled once for all samples of its group, the cache is written in place, and finished
completions leave the batch.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.cache import expand_cache, in_place_cache
from nonpareil.engines.sampling import draw_tokens, sample_keys, sampling_logits
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.models.devices import device_of
from nonpareil.models.loading import context_window, end_token_ids
from nonpareil.records import Draws, FinishReason, Prompt, SamplingParams

RETIRE_BELOW = 0.75
"""Finished rows leave the batch once fewer than this share is still running: compacting copies the cache."""


class TransformersEngine:
    """An engine over a model in this process."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, *, max_tokens_per_batch: int = 32768):
        """`max_tokens_per_batch` bounds rows x (longest prompt + max_completion_length) of one batch.

        Raises:
            ModelError: a model that keeps its state in another way than transformers' `past_key_values`.
        """
        if "cache_params" in inspect.signature(model.forward).parameters:
            raise ModelError(
                f"{type(model).__name__} takes its state as cache_params and would ignore past_key_values, "
                "drawing each token without its past; use a model with attention, a hybrid one included"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens_per_batch = max_tokens_per_batch
        self.end_ids = end_token_ids(model, tokenizer)

    def describe(self) -> dict[str, Any]:
        """What changes the draws; batch size does not."""
        return {"engine": "transformers", "dtype": str(self.model.dtype).removeprefix("torch.")}

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions a prompt; see `protocols.Engine`.

        Raises:
            DataError: an empty prompt, or one that leaves no room for `max_completion_length` in the window.
            ConfigError: sampling parameters out of their range.
        """
        check_sampling(sampling)
        check_prompts(prompts, sampling.max_completion_length, context_window(self.model))
        drawn: list[list[_Completion | None]] = [[None] * num_generations for _ in prompts]
        with generation_mode(self.model):
            for units in self._batches(prompts, num_generations, sampling):
                batch = self._draw_batch([(prompts[p], samples) for p, samples in units], sampling)
                flat = iter(batch)
                for p, samples in units:
                    for i in samples:
                        drawn[p][i] = next(flat)
                if on_progress is not None:
                    finished = sum(samples[-1] == num_generations - 1 for _, samples in units)
                    on_progress(finished, sum(len(c.token_ids) for c in batch))
        return [self._decode([c for c in group if c is not None]) for group in drawn]

    def _batches(
        self, prompts: Sequence[Prompt], num_generations: int, sampling: SamplingParams
    ) -> Iterator[list[tuple[int, range]]]:
        """Prompts of about one length together, each with the samples to draw; a large group is split."""

        def rows_within(prompt_length: int) -> int:
            width = prompt_length + sampling.max_completion_length
            return max(1, self.max_tokens_per_batch // width)

        batch: list[tuple[int, range]] = []
        rows = 0
        for p in sorted(range(len(prompts)), key=lambda p: -len(prompts[p].token_ids)):
            for start in range(0, num_generations, step := rows_within(len(prompts[p].token_ids))):
                samples = range(start, min(start + step, num_generations))
                # Longest first: the batch's first prompt sets its width.
                if batch and rows + len(samples) > rows_within(len(prompts[batch[0][0]].token_ids)):
                    yield batch
                    batch, rows = [], 0
                batch.append((p, samples))
                rows += len(samples)
        if batch:
            yield batch

    @torch.inference_mode()
    def _draw_batch(self, units: list[tuple[Prompt, range]], sampling: SamplingParams) -> "list[_Completion]":
        device = device_of(self.model)
        input_ids, lengths = _left_pad([prompt.token_ids for prompt, _ in units], device)
        width, budget = input_ids.shape[1], sampling.max_completion_length
        padded = bool((lengths < width).any())
        columns = torch.arange(width + budget, device=device)
        real = columns[None] >= (width - lengths)[:, None]
        cache = in_place_cache(self.model.config)
        logits = self.model(
            input_ids=input_ids,
            # Without padding there is nothing to mask, and attention takes its fast path.
            attention_mask=real[:, :width].long() if padded else None,
            position_ids=(columns[:width] - (width - lengths)[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

        prompt_of_row = torch.repeat_interleave(
            torch.arange(len(units), device=device),
            torch.tensor([len(samples) for _, samples in units], device=device),
        )
        expand_cache(cache, prompt_of_row, width + budget)
        rows = _Rows(
            keys=np.concatenate([sample_keys(prompt.prompt_id, s, sampling.seed) for prompt, s in units]),
            lengths=lengths[prompt_of_row],
            real=real[prompt_of_row] if padded else None,
            end_ids=torch.tensor(sorted(self.end_ids), device=device),
        )
        logits = logits[prompt_of_row]
        for step in range(budget):
            tokens, logprobs = draw_tokens(sampling_logits(logits, sampling), rows.keys, step)
            tokens = rows.record(tokens, logprobs)
            if rows.all_done() or step == budget - 1:
                break
            if (alive := rows.retire()) is not None:
                cache.reorder_cache(alive)  # type: ignore[arg-type]
                tokens = tokens[alive]
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=None if rows.real is None else rows.real[:, : width + step + 1].long(),
                position_ids=(rows.lengths + step)[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return rows.completions()

    def _decode(self, completions: "list[_Completion]") -> Draws:
        texts = self.tokenizer.batch_decode([c.token_ids for c in completions], skip_special_tokens=True)
        return Draws(
            completions=texts,
            completion_token_ids=[c.token_ids for c in completions],
            finish_reasons=[c.finish_reason for c in completions],
            logprobs=[c.logprobs for c in completions],
        )


@dataclass(frozen=True)
class _Completion:
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


@dataclass
class _Rows:
    """The rows of a batch that are still in the cache, and everything drawn so far."""

    keys: np.ndarray
    lengths: Int[Tensor, " r"]
    real: Tensor | None
    end_ids: Int[Tensor, " e"]
    tokens: list[Tensor] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)
    members: list[Tensor] = field(default_factory=list)
    """Of each step, the original rows its tokens belong to."""

    def __post_init__(self) -> None:
        self.count = len(self.keys)
        self.here = torch.arange(self.count, device=self.lengths.device)
        self.done = torch.zeros(self.count, dtype=torch.bool, device=self.lengths.device)

    def record(self, tokens: Int[Tensor, " r"], logprobs: Float[Tensor, " r"]) -> Int[Tensor, " r"]:
        """Keep one step's draws of the rows not finished; returns the tokens to feed back."""
        running = ~self.done
        self.tokens.append(tokens[running])
        self.logprobs.append(logprobs[running])
        self.members.append(self.here[running])
        self.done = self.done | torch.isin(tokens, self.end_ids)
        return tokens

    def all_done(self) -> bool:
        return bool(self.done.all())

    def retire(self) -> Int[Tensor, " alive"] | None:
        """Drop the finished rows if that pays; returns the positions that stay, or None for all."""
        alive = (~self.done).nonzero()[:, 0]
        if len(alive) > RETIRE_BELOW * len(self.done):
            return None
        self.keys = self.keys[alive.cpu().numpy()]
        self.lengths, self.here, self.done = self.lengths[alive], self.here[alive], self.done[alive]
        self.real = None if self.real is None else self.real[alive]
        return alive

    def completions(self) -> list[_Completion]:
        """Everything drawn, one completion an original row, in their order."""
        ids: list[list[int]] = [[] for _ in range(self.count)]
        logprobs: list[list[float]] = [[] for _ in range(self.count)]
        for members, tokens, values in zip(self.members, self.tokens, self.logprobs, strict=True):
            for row, token, value in zip(members.tolist(), tokens.tolist(), values.tolist(), strict=True):
                ids[row].append(token)
                logprobs[row].append(value)
        ends = set(self.end_ids.tolist())
        return [
            _Completion(tokens, values, "stop" if tokens[-1] in ends else "length")
            for tokens, values in zip(ids, logprobs, strict=True)
        ]


@contextmanager
def generation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, cache on, gradient checkpointing off; all put back afterwards, also after an error.

    Drawing with checkpointing on silently turns the cache off in some models, and dropout changes the policy.
    """
    use_cache = model.config.use_cache
    training = [(module, module.training) for module in model.modules()]
    # Flags, not gradient_checkpointing_enable: that would forget how checkpointing had been set up.
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    model.eval()
    model.config.use_cache = True
    for module in checkpointing:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in checkpointing:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        for module, was in training:
            module.training = was
        model.config.use_cache = use_cache


def check_prompts(prompts: Sequence[Prompt], max_completion_length: int, window: int | None) -> None:
    """Refuse, before any compute, prompts that the model cannot answer in full.

    Raises:
        DataError: an empty prompt, or prompt + max_completion_length longer than the window.
    """
    for prompt in prompts:
        if not prompt.token_ids:
            raise DataError(
                f"prompt {prompt.prompt_id} is empty: no token to start from; remove it or give the "
                "tokenizer a beginning-of-text token"
            )
        needed = len(prompt.token_ids) + max_completion_length
        if window is not None and needed > window:
            raise DataError(
                f"prompt {prompt.prompt_id} has {len(prompt.token_ids)} tokens; with max_completion_length="
                f"{max_completion_length} that is {needed}, over the model's window of {window}; "
                "drop or shorten the prompt, or lower max_completion_length"
            )


def check_sampling(sampling: SamplingParams) -> None:
    """Refuse sampling parameters out of range, naming the field.

    Raises:
        ConfigError: with the field, its value and the range.
    """
    rules = {
        "max_completion_length": (sampling.max_completion_length >= 1, "at least 1"),
        "temperature": (sampling.temperature > 0, "above 0 (best-of-N needs draws that differ)"),
        "top_p": (0 < sampling.top_p <= 1, "in (0, 1]"),
        "top_k": (sampling.top_k >= 0, "0 (whole vocabulary) or more"),
        "min_p": (0 <= sampling.min_p < 1, "in [0, 1)"),
    }
    for name, (holds, wanted) in rules.items():
        if not holds:
            raise ConfigError(f"{name}={getattr(sampling, name)} must be {wanted}")


def _left_pad(rows: list[list[int]], device: torch.device) -> tuple[Int[Tensor, "b t"], Int[Tensor, " b"]]:
    width = max(map(len, rows))
    # The id under the padding is never seen: masks come from lengths.
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)
