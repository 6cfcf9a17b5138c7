"""What a method is: which draws it needs, what it makes of their rewards, and its loss. Numbers only, no models."""

from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class ScoredDraws:
    """One training step's draws for b prompts: k of the policy, m of the anchor."""

    policy_rewards: Float[Tensor, "b k"]
    """NaN where the reward failed."""
    anchor_rewards: Float[Tensor, "b m"]
    log_ratio: Float[Tensor, "b k"]
    """log pi - log anchor of the policy's draws, nats, summed over the completion; no gradient."""
    tie_breaker: Float[Tensor, "b m"]
    """Independent uniform numbers: equal anchor rewards are ordered by them."""


@dataclass(frozen=True)
class Targets:
    """What the loss needs besides log-probs; computed over the whole batch before it is split for memory."""

    train_policy: Bool[Tensor, "b k"]
    """True where the loss needs the log-prob of a policy draw; all False where a prompt cannot be used."""
    train_anchor: Bool[Tensor, "b m"]

    def select(self, rows: list[int]) -> Self:
        """The targets of some prompts, in the order given."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Method(Protocol):
    """A way to move the policy towards best-of-N of the anchor."""

    policy_draws: int
    anchor_draws: int

    def targets(self, draws: ScoredDraws) -> Any:
        """The `Targets` (of a subclass of the method's own) of one batch."""
        ...

    def loss(
        self, policy_logprobs: Float[Tensor, "b k"], anchor_logprobs: Float[Tensor, "b m"], targets: Any
    ) -> Float[Tensor, " b"]:
        """One number a prompt. Log-probs are nats, summed over the completion; 0 where not trained on."""
        ...

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """Figures of the batch that tell whether the method does what its paper says."""
        ...


def best_draw(rewards: Float[Tensor, "b m"], tie_breaker: Float[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """True at one draw a row: the best, ties broken by the larger `tie_breaker`; failed (NaN) never.

    A row without any valid reward is all False.
    """
    highest = rewards.nan_to_num(nan=-torch.inf).amax(-1, keepdim=True)
    candidates = torch.where(rewards == highest, tie_breaker, -1.0)
    best = torch.zeros_like(rewards, dtype=torch.bool).scatter(-1, candidates.argmax(-1, keepdim=True), True)
    return best & ~rewards.isnan()
