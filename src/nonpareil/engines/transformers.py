"""Draw completions with any causal language model of transformers.

The prompt is prefilled once for all samples of its group, the cache is written in place, and finished
completions leave the batch.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.attention import attention_configs, quick_to_start, shared_attention
from nonpareil.engines.base import PROMPT_CACHE
from nonpareil.engines.batches import BatchProgress, DrawRequest, Unit, batches
from nonpareil.engines.branches import BRANCHES, Branches, Forward, Prefilled, branches_for
from nonpareil.engines.cache import arguments_taken, cache_argument, in_place_cache
from nonpareil.engines.checks import check_prompts, check_sampling, check_token_ids, refuse_changed_draws
from nonpareil.engines.decoding import TEXT, as_draws
from nonpareil.engines.draw_memory import drawing_bounds
from nonpareil.engines.finite import check_draws
from nonpareil.engines.guidance import GUIDED, Guide, Samples, whole_vocabulary
from nonpareil.engines.load_check import check_drawing, check_scoring, draws_alike, told_lacking
from nonpareil.engines.packed_weights import Packing
from nonpareil.engines.rows import Completion, Rows, left_pad
from nonpareil.engines.sampling import sample_keys, sample_tokens
from nonpareil.engines.shared_prompts import SharedPrompts
from nonpareil.engines.watched import Watched
from nonpareil.engines.ways import BRANCHED, COPIED, SHARED, Ways
from nonpareil.errors import ConfigError
from nonpareil.models.adapter_rows import RowAdapters, row_adapters
from nonpareil.models.devices import device_of
from nonpareil.models.loading import end_token_ids, stated_limits
from nonpareil.models.modes import generation_mode
from nonpareil.records import Draws, Prompt, SamplingParams


class TransformersEngine:
    """An engine over a model in this process."""

    keeps_not_finite = False  # set by a caller that looks at the log-probs of `draw` itself

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        max_tokens_per_batch: int = 32768,
        checked: bool = True,
        guide: Guide | None = None,
    ):
        """`max_tokens_per_batch` bounds rows x (longest prompt + max_completion_length) of one batch; on a GPU a
        multiple of it does, up to which the keys fit into an eighth of its memory (`draw_memory`).

        `guide`: a value that tilts what is drawn; candidates of a step count to the tokens of a row.

        `checked=False` is for a model whose weights are still to be read: call `check` once they are.

        Raises:
            ModelError: a model that keeps its state in another way than transformers' `Cache` of attention, or
                whose draws are not those of the model that is scored and trained (`load_check`).
        """
        self.cache_argument = cache_argument(type(model), model.config)
        self.takes = arguments_taken(type(model))
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens_per_batch = max_tokens_per_batch
        self.packing = Packing(model)
        self._turn = (
            threading.RLock()
        )  # a drawing sets the model's modes; a second thread's waits for its turn
        self.ways = Ways(model, self._forward)
        """How the samples of a prompt read its keys; every check asks which of them the model takes."""
        self.end_ids = end_token_ids(model, tokenizer)
        self.guide = guide
        if checked:
            self.check()

    def check(self, adapter: str = "") -> None:
        """Draw a few tokens and compare their log-probs with the model's own; `adapter`: the one that is active.

        Raises:
            ModelError: they differ, or the model cannot be drawn from.
        """
        draw = partial(self._complete_until, adapter)
        taken = []
        for way in self.ways.to_try():
            self.ways.taken = [way]
            if draws_alike(self.model, self.tokenizer, draw):
                taken.append(way)
                if not self.ways.on_gpu:  # there, each has its lengths
                    break
        self.ways.taken = taken
        if taken:
            check_scoring(self.model)  # its draws were compared just now
        else:
            check_drawing(self.model, self.tokenizer, draw)

    def _complete_until(
        self,
        adapter: str,
        prompts: list[Prompt],
        count: int,
        sampling: SamplingParams,
        end_ids: frozenset[int],
    ) -> list[list[Completion]]:
        usual, self.end_ids, self.guide = (self.end_ids, self.guide), end_ids, None  # the model alone
        try:
            return self.complete([DrawRequest(prompts, count, sampling, adapter)])[0]
        finally:
            self.end_ids, self.guide = usual

    def describe(self) -> dict[str, Any]:
        """What changes the draws; batch size does not, nor, but for rounding, does `PROMPT_CACHE`."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        guided = {} if self.guide is None else {"guidance": self.guide.describe()}
        return {"engine": "transformers", "dtype": dtype, PROMPT_CACHE: self.ways.first, **TEXT, **guided}

    def draw(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """Draw `num_generations` completions per prompt; see `engines.base.Engine`.

        Raises:
            DataError: an empty prompt, or one that leaves no room for `max_completion_length` in the window.
            ConfigError: sampling parameters out of their range.
            NotFiniteError: the model's logits are NaN or infinite somewhere.
        """
        drawn = self.draw_together([DrawRequest(prompts, num_generations, sampling)], on_progress)[0]
        return drawn if self.keeps_not_finite else check_draws(prompts, drawn, self.model.dtype)

    def draw_more(
        self,
        prompts: Sequence[Prompt],
        first: int,
        num_generations: int,
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Draws]:
        """The completions `first` .. `num_generations` - 1 that `draw` would give; raises as that."""
        request = DrawRequest(prompts, num_generations, sampling, first=first)
        return check_draws(prompts, self.draw_together([request], on_progress)[0], self.model.dtype)

    def draw_together(
        self, requests: Sequence[DrawRequest], on_progress: Callable[[int, int], None] | None = None
    ) -> list[list[Draws]]:
        """Several requests in common batches, as if drawn alone, unchecked (`finite`); all from adapters, or none.

        Raises:
            DataError, ConfigError: as `draw`; requests whose sampling differs in more than the seed.
            ModelError: an operation of the model is not there on this device, or in this dtype.
        """
        return [
            [
                as_draws(self.tokenizer, self.end_ids, *pair, request.sampling.stop)
                for pair in zip(request.prompts, groups, strict=True)
            ]
            for request, groups in zip(requests, self.complete(requests, on_progress), strict=True)
        ]

    def complete(
        self, requests: Sequence[DrawRequest], on_progress: Callable[[int, int], None] | None = None
    ) -> list[list[list[Completion]]]:
        """As `draw_together`, without the text of the tokens."""
        if len({replace(request.sampling, seed=0) for request in requests}) > 1:
            raise ConfigError("requests that are drawn together may differ in their seeds alone")
        for request in requests:
            check_sampling(request.sampling)
            if self.guide is not None:
                refuse_changed_draws(request.sampling, GUIDED)
            window, vocabulary = stated_limits(self.model.config)
            check_prompts(request.prompts, request.sampling.max_completion_length, window)
            check_token_ids(request.prompts, vocabulary, "the model")
        drawn: list[list[list[Completion | None]]] = [
            [[None] * request.num_generations for _ in request.prompts] for request in requests
        ]
        adapted = any(request.adapter for request in requests)
        adapters = row_adapters(self.model) if adapted else nullcontext()
        queries = 0 if self.guide is None else self.guide.queries
        with self._turn, ExitStack() as modes:
            modes.enter_context(generation_mode(self.model))
            modes.enter_context(quick_to_start(device_of(self.model)))
            self.ways.ask(requests)
            routes = modes.enter_context(adapters)
            bounds = drawing_bounds(self.model, self.max_tokens_per_batch, queries, requests)
            for units in batches(requests, *bounds):
                progress = BatchProgress(requests, units, on_progress) if on_progress is not None else None
                with told_lacking(self.model), self.packing.of(requests, units, self.ways.first != COPIED):
                    batch = self._draw_batch(requests, units, routes, progress)
                flat = iter(batch)
                for unit in units:
                    for i in unit.samples:
                        drawn[unit.request][unit.prompt][i] = next(flat)
                if progress is not None:
                    progress.update((), sum(len(c.token_ids) for c in batch))
        return [[[c for c in group if c is not None] for group in groups] for groups in drawn]

    @torch.inference_mode()
    def _draw_batch(
        self,
        requests: Sequence[DrawRequest],
        units: list[Unit],
        routes: RowAdapters | None,
        progress: BatchProgress | None,
    ) -> list[Completion]:
        asked = [requests[unit.request] for unit in units]
        prompts = [request.prompts[unit.prompt] for request, unit in zip(asked, units, strict=True)]
        sampling = asked[0].sampling  # they differ in their seeds alone
        if routes is not None:
            routes.names = [request.adapter for request in asked]
        prefilled, logits = self._prefill(prompts, sampling.max_completion_length)
        counts = [len(unit.samples) for unit in units]
        samples: Samples = self._samples(prefilled, counts)
        keys = [
            sample_keys(prompt.prompt_id, unit.samples, request.sampling.seed)
            for prompt, unit, request in zip(prompts, units, asked, strict=True)
        ]
        rows = Rows(
            keys=np.concatenate(keys), end_ids=torch.tensor(sorted(self.end_ids), device=logits.device)
        )
        logits = logits.repeat_interleave(torch.tensor(counts, device=logits.device), dim=0)
        if self.guide is not None:
            samples = guided = self.guide.over(samples, prompts, counts, sampling, rows.end_ids)
            logits, sampling = guided.first(logits), whole_vocabulary(sampling)
        of_rows = [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        watched = Watched(self.tokenizer, self.end_ids, sampling, of_rows, logits)
        for step in range(sampling.max_completion_length):
            tokens, logprobs = sample_tokens(watched.penalised(logits), sampling, rows.keys, step)
            tokens = rows.record(tokens, logprobs)
            watched.saw(rows, tokens)
            if rows.all_done() or step == sampling.max_completion_length - 1:
                break
            if (alive := rows.retire()) is not None:
                samples.keep(alive)
                watched.keep(alive)
                tokens = tokens[alive]
                if progress is not None:
                    progress.update(rows.here.tolist(), sum(map(len, rows.tokens)))
            if routes is not None and (step == 0 or alive is not None):
                routes.names = [asked[i].adapter for i in samples.prompt_of_row.tolist()]
            logits = samples.next(tokens, step)
        return rows.completions()

    def _prefill(self, prompts: list[Prompt], budget: int) -> tuple[Prefilled, Float[Tensor, "b v"]]:
        """The prompts' keys and values in a cache, and the logits of the token that follows each."""
        input_ids, lengths = left_pad([prompt.token_ids for prompt in prompts], device_of(self.model))
        width = input_ids.shape[1]
        cache = in_place_cache(self.model.config, width + budget)
        prefilled = Prefilled(cache, lengths, width, budget)
        start = (width - lengths)[:, None]
        columns = torch.arange(width, device=input_ids.device)[None]
        # Without padding there is nothing to mask, and attention takes its fast path.
        mask = (columns >= start).long() if prefilled.padded else None
        positions = (columns - start).clamp(min=0)
        return prefilled, self._forward(cache)(input_ids, mask, positions, 1)[:, -1]

    def _samples(self, prompts: Prefilled, counts: list[int]) -> Branches | SharedPrompts:
        way, forward = self.ways.of(prompts, counts), self._forward(prompts.cache)
        if way == SHARED:
            return SharedPrompts(self._attending(forward), prompts, counts)
        branches = branches_for(counts, BRANCHES if way == BRANCHED else 1)
        return Branches(forward, prompts, counts, branches, self.model.dtype)

    def _attending(self, forward: Forward) -> Forward:
        """Passes whose attention is that of `attention.attend`."""
        configs = attention_configs(self.model)

        def attending(*arguments: Any) -> Float[Tensor, "b s v"]:
            with shared_attention(configs):
                return forward(*arguments)

        return attending

    def _forward(self, cache: Cache) -> Callable[..., Float[Tensor, "b s v"]]:
        def forward(
            ids: Int[Tensor, "b t"], mask: Tensor | None, positions: Int[Tensor, "b t"], keep: int = 0
        ) -> Float[Tensor, "b s v"]:
            arguments: dict[str, Any] = {"position_ids": positions, "logits_to_keep": keep}
            return self.model(
                input_ids=ids,
                attention_mask=mask,
                use_cache=True,
                **{self.cache_argument: cache},
                **{name: value for name, value in arguments.items() if name in self.takes},
            ).logits

        return forward
