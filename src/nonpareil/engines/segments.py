"""Completions drawn a segment at a time: between two segments some are given up, and others go on several ways.

Token ids and the cache of keys and values are kept from one segment to the next, so that nothing is prefilled or
drawn twice. Each completion has the random numbers of its place in the group, token by token: one that is never
given up is the one that `draw` gives.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.engines.attention import quick_to_start
from nonpareil.engines.batches import DrawRequest, Unit
from nonpareil.engines.branches import Branches, Prefilled
from nonpareil.engines.checks import check_prompts, check_sampling, check_token_ids, refuse_changed_draws
from nonpareil.engines.decoding import as_draws
from nonpareil.engines.finite import check_draws
from nonpareil.engines.rows import Completion, Rows
from nonpareil.engines.sampling import sample_keys, sample_tokens
from nonpareil.engines.shared_prompts import SharedPrompts
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.engines.ways import COPIED, SHARED
from nonpareil.errors import ConfigError
from nonpareil.models.devices import device_of
from nonpareil.models.loading import stated_limits
from nonpareil.models.modes import generation_mode
from nonpareil.records import Draws, Prompt, SamplingParams

NO_STOP = "what is drawn segment by segment takes neither stop strings nor a penalty on repetitions"


@dataclass
class Partial:
    """A completion as far as it is drawn."""

    prompt: int
    """Its prompt's place among those that are drawn together."""
    sample: int
    """Its place in the group, which its random numbers belong to."""
    token_ids: list[int] = field(default_factory=list)
    """The end token included, where it was drawn."""
    logprobs: list[float] = field(default_factory=list)
    """Nats, temperature and kept set applied."""
    ended: bool = False
    """Whether it drew an end token."""

    def completion(self) -> Completion:
        """As every draw is kept; what has not ended yet is cut."""
        return Completion(self.token_ids, self.logprobs, "stop" if self.ended else "length")


class SegmentedDraws:
    """Completions of some prompts while they are drawn. `partials`: those that go on or have ended."""

    def __init__(
        self,
        engine: "SegmentingEngine",
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: SamplingParams,
    ):
        """Prefills the prompts; `num_generations` completions of each are begun."""
        self._engine, self._prompts, self._sampling = engine, prompts, sampling
        self._length = 0
        """Tokens of each that has not ended."""
        self.partials = [Partial(p, i) for p in range(len(prompts)) for i in range(num_generations)]
        self._rows = list(self.partials)
        """What the rows of the cache are, in their order; it is that of the prompts."""
        counts = [num_generations] * len(prompts)
        self._samples, self._logits = engine.begun(prompts, counts, sampling.max_completion_length)

    @torch.inference_mode()
    def draw_to(self, length: int) -> list[int]:
        """Draw what has not ended up to `length` tokens; returns how many were drawn for each prompt."""
        drawn = [0] * len(self._prompts)
        if not self._rows:
            return drawn
        logits, going = self._logits, self._rows
        ends = torch.tensor(sorted(self._engine.end_ids), device=logits.device)
        rows = Rows(keys=self._keys(going), end_ids=ends)
        for step in range(self._length, length):
            tokens, logprobs = sample_tokens(logits, self._sampling, rows.keys, step)
            rows.record(tokens, logprobs)
            if rows.all_done() or step == length - 1:
                break
            if (alive := rows.retire()) is not None:
                self._samples.keep(alive)
                tokens = tokens[alive]
            logits = self._samples.next(tokens, step)
        for partial, more in zip(going, rows.completions(), strict=True):
            partial.token_ids += more.token_ids
            partial.logprobs += more.logprobs
            partial.ended = more.finish_reason == "stop"
            drawn[partial.prompt] += len(more.token_ids)
        self._rows = [going[place] for place in rows.here.tolist()]
        self._length = length
        return drawn

    @torch.inference_mode()
    def go_on(self, kept: Sequence[tuple[Partial, Sequence[int]]]) -> None:
        """Only these go on, in the order of `partials`: each as so many completions as it has samples.

        Their last token is read once, whatever it is followed by. Of those that have ended nothing is read.
        """
        samples_of = {id(partial): samples for partial, samples in kept}
        places = [
            i for i, row in enumerate(self._rows) if not row.ended and len(samples_of.get(id(row), ())) > 0
        ]
        rows, in_cache = [self._rows[place] for place in places], len(self._rows)
        self.partials = [
            each
            for partial, samples in kept
            for each in ([partial] if partial.ended else _continued(partial, samples))
        ]
        self._rows = [partial for partial in self.partials if not partial.ended]
        if not rows:
            return
        device = self._logits.device
        if len(places) < in_cache:
            self._samples.keep(torch.tensor(places, device=device))
        tokens = torch.tensor([row.token_ids[-1] for row in rows], device=device)
        logits = self._samples.next(tokens, self._length - 1)
        times = torch.tensor([len(samples_of[id(row)]) for row in rows], device=device)
        if int(times.max()) > 1:
            repeated = torch.arange(len(rows), device=device).repeat_interleave(times)
            self._samples.repeat(repeated)
            logits = logits[repeated]
        self._logits = logits

    def draws(self, prompt: int, partials: Sequence[Partial]) -> Draws:
        """Some completions of a prompt as they stand, with their texts.

        Raises:
            NotFiniteError: the model's logits were NaN or infinite.
        """
        of, engine = self._prompts[prompt], self._engine
        draws = as_draws(engine.tokenizer, engine.end_ids, of, [one.completion() for one in partials])
        return check_draws([of], [draws], engine.model.dtype)[0]

    def _keys(self, partials: Sequence[Partial]) -> np.ndarray:
        seed = self._sampling.seed
        keys = [
            sample_keys(self._prompts[partial.prompt].prompt_id, [partial.sample], seed)
            for partial in partials
        ]
        return np.concatenate(keys)


def _continued(partial: Partial, samples: Sequence[int]) -> list[Partial]:
    return [
        replace(partial, sample=sample, token_ids=[*partial.token_ids], logprobs=[*partial.logprobs])
        for sample in samples
    ]


class SegmentingEngine(TransformersEngine):
    """Transformers' engine, which can also draw segment by segment. It takes no guide."""

    @contextmanager
    def segments(
        self, prompts: Sequence[Prompt], num_generations: int, sampling: SamplingParams
    ) -> Iterator[SegmentedDraws]:
        """Completions of prompts that are drawn together, begun; inside, the model is in its mode of drawing.

        Raises:
            ConfigError: sampling parameters out of range, stop strings or a penalty, or an engine with a guide.
            DataError: a prompt that is empty or leaves no room for `max_completion_length` in the window.
        """
        check_sampling(sampling)
        refuse_changed_draws(sampling, NO_STOP)
        if self.guide is not None:
            raise ConfigError("an engine with a guide draws whole completions; make one without")
        window, vocabulary = stated_limits(self.model.config)
        check_prompts(prompts, sampling.max_completion_length, window)
        check_token_ids(prompts, vocabulary, "the model")
        request = DrawRequest(prompts, num_generations, sampling)
        units = [Unit(0, place, range(num_generations)) for place in range(len(prompts))]
        with self._turn, ExitStack() as modes:
            modes.enter_context(generation_mode(self.model))
            modes.enter_context(quick_to_start(device_of(self.model)))
            self.ways.ask([request])
            modes.enter_context(self.packing.of([request], units, self.ways.first != COPIED))
            yield SegmentedDraws(self, prompts, num_generations, sampling)

    @torch.inference_mode()
    def begun(
        self, prompts: Sequence[Prompt], counts: list[int], budget: int
    ) -> tuple[Branches | SharedPrompts, Float[Tensor, "r v"]]:
        """The samples of a batch, each with a row of its own, and the logits of each one's first token."""
        prefilled, logits = self._prefill(list(prompts), budget)
        repeated = logits.repeat_interleave(torch.tensor(counts, device=logits.device), dim=0)
        return self._apart(prefilled, counts), repeated

    def _apart(self, prompts: Prefilled, counts: list[int]) -> Branches | SharedPrompts:
        """Samples that can be multiplied: several in one row cannot."""
        forward = self._forward(prompts.cache)
        if self.ways.of(prompts, counts) == SHARED:
            return SharedPrompts(self._attending(forward), prompts, counts)
        return Branches(forward, prompts, counts, 1, self.model.dtype)
