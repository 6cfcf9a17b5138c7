"""The forward KL to best-of-n on reference draws: the better less the mean one, and a pull to the reference."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.maths.order_statistics import rank_weights
from nonpareil.methods.base import ScoredDraws, first_valid, rewards_differ

Imitate = Literal["winner", "all"]


class Imitation(NamedTuple):
    """How much each reference draw is imitated or forgotten, and how much it holds the policy at the reference.

    Plain imitation weighs -log pi(y_j) by w_j, the draw's chance to be the best of n. Here the group's mean is
    taken off each weight, w_j - 1/v for v draws, and what was taken off comes back as KL(pi_ref || pi), whose
    expected gradient is the same (that of -log pi over reference draws) and which, estimated a token at a time
    (`maths.losses.kl_from_reference_loss`), is at rest at pi = pi_ref, up to the rounding of what drew them. So the
    expected gradient, and with it where training ends, is that of -log pi(winner); the noise is less, and a group
    whose rewards all tie adds the pull alone.

    One exception: where it depends on the completion whether its reward fails, plain imitation never sees those
    that fail, and ends without them; the pull, which rests at the reference, leaves them the reference's share.
    """

    contrast: Float[Tensor, "b m"]
    """w_j - 1/v; rows sum to 0 and are exactly 0 where all rewards tie."""
    pull: Float[Tensor, "b m"]
    """1/v; rows sum to 1, or to 0 where fewer than n rewards are valid."""

    @classmethod
    def none(cls, rewards: Float[Tensor, "b m"]) -> "Imitation":
        """No draw is imitated."""
        return cls(torch.zeros_like(rewards), torch.zeros_like(rewards))

    @property
    def trained(self) -> Bool[Tensor, "b m"]:
        """True at draws whose log-prob the loss needs."""
        return self.pull > 0

    def where(self, rows: Bool[Tensor, " b"]) -> "Imitation":
        """Nothing in the other rows."""
        return Imitation(self.contrast * rows[:, None], self.pull * rows[:, None])


def imitation(rewards: Float[Tensor, "b m"], n: int, imitate: Imitate) -> Imitation:
    """Weights of the forward KL to best-of-n, up to a constant and without bias; equal rewards share theirs.

    `winner`: of the first n draws that did not fail. `all`: each draw's chance to be the best of a random n of
    them (`order_statistics.rank_weights`); the same mean with less noise. A row with fewer than n valid rewards is
    0 throughout.
    """
    entrants = rewards if imitate == "all" else rewards.masked_fill(~first_valid(rewards, n), torch.nan)
    weights = rank_weights(entrants, n).nan_to_num(nan=0.0)
    taking_part = ~entrants.isnan() & (weights.sum(-1, keepdim=True) > 0)
    pull = taking_part / taking_part.sum(-1, keepdim=True).clamp(min=1).to(weights.dtype)
    contrast = torch.where(rewards_differ(entrants)[:, None], weights - pull, 0.0)
    return Imitation(contrast, pull)


def of_trained(draws: ScoredDraws, trained: Bool[Tensor, "b m"]) -> Float[Tensor, "b m t"]:
    """log pi_ref of the trained draws' tokens; 0 at the others, as the policy's are in a method's loss."""
    return torch.where(trained[..., None], draws.anchor_token_logprobs, 0.0)
