"""Win rates over all pairs within a prompt."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.counts import count_among
from nonpareil.maths.scalars import at_least_float32


@dataclass(frozen=True)
class PairCounts:
    """Shares of each prompt's pairs of a policy and a reference sample; NaN where a prompt has no pair."""

    win: Float[Tensor, " b"]
    tie: Float[Tensor, " b"]
    loss: Float[Tensor, " b"]

    @property
    def win_rate(self) -> Float[Tensor, " b"]:
        """win + tie / 2 of each prompt, written so that a policy against itself has exactly one half."""
        return (1 + self.win - self.loss) / 2


def pairwise(policy_rewards: Float[Tensor, "b k"], reference_rewards: Float[Tensor, "b m"]) -> PairCounts:
    """Win, tie and loss shares over all k x m pairs of each prompt, without forming them.

    Failed (NaN) rewards are excluded; a prompt without a pair left is NaN.
    """
    below, at_or_below, num_references = count_among(policy_rewards, reference_rewards)
    valid = ~policy_rewards.isnan()

    def share(count: Tensor) -> Tensor:
        pairs = valid.sum(-1) * num_references.squeeze(-1)
        return (count * valid).sum(-1).to(
            at_least_float32(policy_rewards)
        ) / pairs  # 0 / 0 is NaN, as it should be

    return PairCounts(
        win=share(below), tie=share(at_or_below - below), loss=share(num_references - at_or_below)
    )
