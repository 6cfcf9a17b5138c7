"""What a method is: which draws it needs, what it makes of their rewards, and its loss. Numbers only, no models."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BEST_OF_1 = "best-of-1 is the reference itself"
"""Why no method's n is below 2."""


@dataclass(frozen=True)
class ScoredDraws:
    """One training step's draws for b prompts: k of the policy, m of the anchor (or of a stored group).

    Log-probabilities are nats under the distribution that was drawn from, temperature applied.
    """

    policy_rewards: Float[Tensor, "b k"]
    """float64, as the anchor's, so that close rewards do not tie; NaN where the reward failed."""
    anchor_rewards: Float[Tensor, "b m"]
    policy_token_logprobs: Float[Tensor, "b k t"]
    """log pi of each token as it was drawn; 0 behind the completion's end."""
    completion_mask: Bool[Tensor, "b k t"]
    """True on the tokens of the policy's completions, the end token included."""
    anchor_logprobs_of_policy: Float[Tensor, "b k"]
    """log anchor of the policy's draws, summed over the completion."""
    anchor_token_logprobs: Float[Tensor, "b m t"]
    """log anchor of each token of the anchor's own draws, 0 behind the end; nothing where the reward is NaN."""
    tie_breaker: Float[Tensor, "b m"]
    """Independent uniform numbers: equal anchor rewards are ordered by them."""

    @property
    def log_ratio(self) -> Float[Tensor, "b k"]:
        """log pi - log anchor of the policy's draws, summed over the completion; no gradient."""
        return self.policy_token_logprobs.sum(-1) - self.anchor_logprobs_of_policy

    @property
    def rewards_differ(self) -> Bool[Tensor, " b"]:
        """True where two rewards of the prompt differ, of the policy's and the anchor's draws together."""
        return rewards_differ(torch.cat([self.policy_rewards, self.anchor_rewards], dim=1))

    @property
    def anchor_logprobs(self) -> Float[Tensor, "b m"]:
        """log anchor of the anchor's own draws, summed over the completion; nothing where the reward is NaN."""
        return self.anchor_token_logprobs.sum(-1)

    def select(self, rows: list[int]) -> Self:
        """The draws for some prompts, in the order given."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Targets:
    """What the loss needs besides log-probs; computed over all prompts of a step before it is split for memory."""

    train_policy: Bool[Tensor, "b k"]
    """True where the loss needs the log-prob of a policy draw; all False where a prompt cannot be used."""
    train_anchor: Bool[Tensor, "b m"]
    signal: Bool[Tensor, " b"] | None = field(default=None, kw_only=True)
    """False where the prompt's rewards tell nothing, as where all tie: it adds a pull to the anchor at most.

    A step in which no prompt has any moves nothing. None: every prompt that is trained on has some.
    """

    def select(self, rows: list[int]) -> Self:
        """The targets of some prompts, in the order given."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device) -> Self:
        """The targets on a device; what was worked out of rewards in float64 is float32 there, as log-probs are."""
        return self._each(lambda v: v.to(device, torch.float32 if v.is_floating_point() else None))

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        made: dict[str, Any] = {name: None if v is None else function(v) for name, v in values.items()}
        return type(self)(**made)


class Method(Protocol):
    """A way to move the policy towards best-of-N of the anchor. Its settings are its dataclass fields."""

    anchor_ema_rate: ClassVar[float | None]
    """The anchor's default EMA rate; None: the anchor is the fixed reference, and may not be set to move."""

    @property
    def policy_draws(self) -> int:
        """k, completions drawn of the policy for each prompt and step."""
        ...

    @property
    def anchor_draws(self) -> int:
        """m, completions drawn of the anchor; 0 where stored groups take their place."""
        ...

    def targets(self, draws: ScoredDraws) -> Any:
        """The `Targets` (of a subclass of the method's own) of one batch."""
        ...

    def loss(
        self, policy_logprobs: Float[Tensor, "b k t"], anchor_logprobs: Float[Tensor, "b m t"], targets: Any
    ) -> Float[Tensor, " b"]:
        """One number a prompt. Log-probs are nats of each token; 0 behind the end and where not trained on."""
        ...

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """Figures of the batch that tell whether the method does what its paper says."""
        ...


def best_draw(rewards: Float[Tensor, "*b m"], tie_breaker: Float[Tensor, "*b m"]) -> Bool[Tensor, "*b m"]:
    """True at one draw a row: the best, ties broken by the larger `tie_breaker`; failed (NaN) never.

    A row without any valid reward is all False.
    """
    highest = rewards.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1, keepdim=True)
    candidates = torch.where(rewards == highest, tie_breaker, -1.0)
    best = torch.zeros_like(rewards, dtype=torch.bool).scatter(-1, candidates.argmax(-1, keepdim=True), True)
    return best & ~rewards.isnan()


def rewards_differ(rewards: Float[Tensor, "b m"]) -> Bool[Tensor, " b"]:
    """True where two rewards of the row differ; failed ones (NaN) are left out."""
    failed = rewards.isnan()
    highest, lowest = rewards.masked_fill(failed, -torch.inf), rewards.masked_fill(failed, torch.inf)
    return highest.amax(-1) > lowest.amin(-1)


def first_valid(rewards: Float[Tensor, "b m"], n: int) -> Bool[Tensor, "b m"]:
    """True at the first n draws of each row whose reward did not fail; a row that has fewer is all False."""
    valid = ~rewards.isnan()
    return valid & (valid.cumsum(-1) <= n) & (valid.sum(-1, keepdim=True) >= n)
