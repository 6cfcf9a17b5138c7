"""Methods that learn from what other next tokens would have been worth, at every position of stored completions."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.credits import Credits
from nonpareil.methods.base import Method, ScoredDraws, Targets, no_draw


@dataclass(frozen=True)
class CreditedDraws(ScoredDraws):
    """Stored groups of the reference, with what is known of other next tokens."""

    credits: np.ndarray
    """Of each completion `[b, m]`, `Credits` or None."""


@dataclass(frozen=True)
class NextTokens:
    """What a loss sees of q positions of some completions, one after another: k candidates for each next token."""

    log_ratio: Float[Tensor, "q k"]
    """log pi - log pi_ref of the candidates, nats, with the policy's gradient; temperature applied."""
    kl_from_reference: Float[Tensor, " q"]
    """KL(pi_ref || pi) of the next token over the whole vocabulary, nats, with the policy's gradient."""
    weights: Float[Tensor, "q k"]
    """As those of `Credits`, like the two that follow."""
    advantages: Float[Tensor, "q k"]
    prefix_values: Float[Tensor, " q"]


class CreditedMethod(Method):
    """A method whose loss reads, in place of log-probs of drawn tokens, those of `Credits`' candidates.

    It trains on stored groups with credits; policy and reference both make a pass over the completions, so that
    the reference is held beside the policy. A prompt's loss is the mean over its completions of the sum over their
    tokens. A completion without credits, or whose reward failed, takes no part.
    """

    stored_groups: ClassVar = "required"
    tilted_start: bool = False
    """Whether the policy begins at a tilt that is counted from the credits; for methods that have it as a field."""

    def target_tilt(self, advantages: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the method would add to candidates' log-probs, nats, of their advantages; for `tilted_start`."""
        return advantages

    @property
    def needs_anchor(self) -> bool:
        """The reference, whose next-token distributions the loss is made of."""
        return True

    @abstractmethod
    def next_token_loss(self, tokens: NextTokens) -> Float[Tensor, " q"]:
        """One number per position, nats; the trainer sums and averages."""

    @abstractmethod
    def tells(self, credits: Credits) -> bool:
        """Whether a completion's credits tell its candidates apart, so that the loss moves the reference."""

    def targets(self, draws: CreditedDraws) -> Targets:  # type: ignore[override]  # the trainer gives no others
        """Which completions are trained on, and the prompts that learn something from them."""
        rewards = draws.anchor_rewards
        trained = torch.zeros_like(rewards, dtype=torch.bool)
        signal = torch.zeros(len(rewards), dtype=torch.bool)
        for row, place, credits in trained_credits(draws):
            trained[row, place] = True
            signal[row] |= self.tells(credits)
        return Targets(no_draw(draws.policy_rewards), trained, signal=signal)

    def loss(self, policy_logprobs: Tensor, anchor_logprobs: Tensor, targets: Any) -> NoReturn:
        """There is none of the drawn tokens alone; see `next_token_loss`."""
        raise TypeError(f"{type(self).__name__} has no loss of drawn tokens; call next_token_loss")


def trained_credits(draws: CreditedDraws) -> Iterator[tuple[int, int, Credits]]:
    """Row, place and credits of the completions that are trained on."""
    usable: Bool[Tensor, "b m"] = ~draws.anchor_rewards.isnan()
    for row, place in usable.nonzero().tolist():
        credits = draws.credits[row, place]
        if credits is not None:
            yield row, place, credits


def next_tokens(
    log_ratio: Float[Tensor, "q k"], kl_from_reference: Float[Tensor, " q"], credits: Sequence[Credits]
) -> NextTokens:
    """The models' numbers beside the credits of the same completions, in their order."""
    names = ("weights", "advantages", "prefix_values")
    return NextTokens(
        log_ratio, kl_from_reference, *(joined(credits, name, log_ratio.device) for name in names)
    )


def joined(credits: Sequence[Credits], name: str, device: torch.device | str = "cpu") -> Tensor:
    """One of the arrays of some completions, one behind another."""
    return torch.from_numpy(np.concatenate([getattr(each, name) for each in credits])).to(device)


def as_table(credits: Sequence[Sequence[Credits | None]], width: int) -> np.ndarray:
    """`[b, width]`, with None where a group is smaller."""
    table = np.full((len(credits), width), None, dtype=object)
    for row, of_group in enumerate(credits):
        for place, each in enumerate(of_group):
            if each is not None:
                table[row, place] = each
    return table


def with_credits(draws: ScoredDraws, credits: Sequence[Sequence[Credits | None]]) -> CreditedDraws:
    """The draws of some prompts, the anchor's being stored, with the credits of each prompt's completions."""
    values = {each.name: getattr(draws, each.name) for each in fields(draws)}
    return CreditedDraws(**values, credits=as_table(credits, draws.anchor_rewards.shape[1]))
