"""Draws guided by a value of prefixes: at every step the likeliest next tokens are valued, and the law is tilted.

The law is that of `maths.guidance`. It is known, so that the log-probs of what is drawn are those of the guided
policy, and its KL from the reference is exact (`engines.guided_divergence`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.engines.prefix_rows import CachedRows, SeparateRows, shares_rows
from nonpareil.engines.sampling import sampling_logits
from nonpareil.errors import NotFiniteError
from nonpareil.maths.guidance import Guidance, guided_logprobs, likeliest_tokens
from nonpareil.records import Prompt, SamplingParams
from nonpareil.values.base import PrefixValue


@runtime_checkable
class NetworkValue(Protocol):
    """A `PrefixValue` that a causal network gives, which can therefore read token by token, from a cache."""

    @property
    def network(self) -> PreTrainedModel:
        """Whole in this process; in evaluation mode while it is read."""
        ...

    def read(self, states: Float[Tensor, "*s d"]) -> Float[Tensor, "*s"]:
        """log E_ref[W | prefix], nats, up to a constant of the prompt, from the last hidden state of a prefix."""
        ...

    def as_read(self, prompt_ids: Sequence[int]) -> list[int]:
        """A prompt as the network reads it: what it reads may begin with tokens of its own."""
        ...


class Samples(Protocol):
    """The samples of a batch in the policy's cache: `branches.Branches` and its like."""

    @property
    def prompt_of_row(self) -> Int[Tensor, " r"]:
        """Of each row of the cache, the prompt that it belongs to."""
        ...

    def next(self, tokens: Int[Tensor, " r"], step: int) -> Float[Tensor, "r v"]:
        """Logits behind each sample's `step`-th token."""
        ...

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on."""
        ...


GUIDED = "a value knows prefixes and ends of the policy's own draws, and guides no others"
"""Why guided draws have neither stop strings nor a penalty."""


@dataclass(frozen=True)
class Guide:
    """A value, and how it guides."""

    value: PrefixValue
    law: Guidance

    @property
    def queries(self) -> int:
        """Tokens of each sample in one pass of a value's network, at most."""
        return 1 + self.law.likeliest

    def describe(self) -> dict[str, Any]:
        """What decides the law, for manifests."""
        return {"value": self.value.describe(), **asdict(self.law)}

    def over(
        self,
        samples: Samples,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        sampling: SamplingParams,
        end_ids: Int[Tensor, " e"],
    ) -> "GuidedSamples":
        """The samples of a batch, so many of each prompt, guided."""
        ids, budget = [prompt.token_ids for prompt in prompts], sampling.max_completion_length
        value = self.value
        rows: CachedRows | SeparateRows
        read = [value.as_read(each) for each in ids] if isinstance(value, NetworkValue) else ids
        if isinstance(value, NetworkValue) and shares_rows(value.network, read, budget):
            rows = CachedRows(value.network, value.read, read, counts, budget + self.queries)
        else:
            rows = SeparateRows(value.prefix_values, ids, counts)
        return GuidedSamples(samples, rows, self.law, sampling, end_ids, sum(counts))


def whole_vocabulary(sampling: SamplingParams) -> SamplingParams:
    """How tokens are drawn from log-probs in which temperature and kept set are applied already."""
    return replace(sampling, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)


class GuidedSamples:
    """Samples whose logits are the guided policy's log-probs: temperature and kept set, then the value."""

    def __init__(
        self,
        samples: Samples,
        rows: CachedRows | SeparateRows,
        law: Guidance,
        sampling: SamplingParams,
        end_ids: Int[Tensor, " e"],
        count: int,
    ):
        """`rows`: the same samples as the value reads them; `count` of them in all."""
        self.samples, self.rows, self.law, self.sampling = samples, rows, law, sampling
        self.end_ids = end_ids
        self.running: Bool[Tensor, " r"] = torch.ones(count, dtype=torch.bool, device=end_ids.device)

    @property
    def prompt_of_row(self) -> Int[Tensor, " r"]:
        """As the policy's samples have it."""
        return self.samples.prompt_of_row

    def first(self, logits: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """Of each sample's first token, from the policy's logits."""
        return self._guided(logits, None)

    def next(self, tokens: Int[Tensor, " r"], step: int) -> Float[Tensor, "r v"]:
        """Behind each sample's `step`-th token; of samples that have ended it is of no use."""
        self.running = self.running & ~torch.isin(tokens, self.end_ids)
        return self._guided(self.samples.next(tokens, step), tokens)

    def keep(self, alive: Int[Tensor, " alive"]) -> None:
        """Only these samples go on."""
        self.samples.keep(alive)
        self.rows.keep(alive)
        self.running = self.running[alive]

    def _guided(self, logits: Float[Tensor, "r v"], tokens: Int[Tensor, " r"] | None) -> Float[Tensor, "r v"]:
        logprobs = sampling_logits(logits, self.sampling).log_softmax(-1)
        token_ids, chosen, rest = likeliest_tokens(logprobs, self.law.likeliest)
        before, values = self.rows.values(tokens, token_ids, self.running)
        wanted = self.running[:, None] & (chosen > -torch.inf)
        refuse_no_value(before[self.running], values[wanted])
        advantages = self.law.advantages(
            values.masked_fill(~wanted, 0.0), before.masked_fill(~self.running, 0.0)
        )
        return guided_logprobs(logprobs, token_ids, *self.law.log_ratios(chosen, rest, advantages))


def refuse_no_value(before: Float[Tensor, " q"], values: Float[Tensor, " c"]) -> None:
    """Refuse values that are no numbers; a candidate may be worth -inf, a prefix that was come to may not.

    Raises:
        NotFiniteError: NaN or infinite.
    """
    if not bool(before.isfinite().all() & (values < torch.inf).all()):
        raise NotFiniteError(
            "the value of a prefix is NaN or infinite, and cannot guide; look at the value on these prompts, or "
            "load it in another dtype"
        )
