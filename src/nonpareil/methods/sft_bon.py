"""SFT on best-of-n: imitate the winner of stored groups. The forward KL of BOND, offline."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.losses import imitation_loss
from nonpareil.methods.base import BEST_OF_1, Method, ScoredDraws, Targets, no_draw
from nonpareil.methods.imitation import Imitate, imitation, of_trained
from nonpareil.settings import option


@dataclass(frozen=True)
class SFTBoNTargets(Targets):
    """How much each stored draw is imitated, and how much it holds the policy at the reference."""

    contrast: Float[Tensor, "b m"]
    pull: Float[Tensor, "b m"]
    reference_token_logprobs: Float[Tensor, "b m t"]


@dataclass(frozen=True)
class SFTBoN(Method):
    """Stored groups of m >= n reference draws; recovers best-of-n where model and data allow.

    `imitate`: the `winner` of n draws, or `all` m with their rank weights, which is the same in the mean and less
    noisy. The winner counts less the mean of its n draws, with a pull to the reference for what that takes off:
    the same expected gradient as plain SFT's (`methods.imitation`), less noise, and nothing but the pull where all
    rewards tie. That costs n log-probs per prompt, or m.

    Raises:
        ConfigError: n below 2, or another word for `imitate`.
    """

    n: int = option(8, "The target is best-of-n.", at_least=2, why=BEST_OF_1)
    imitate: Imitate = option("winner", "The winner of n draws, or all draws with their rank weights.")

    stored_groups: ClassVar = "required"

    @property
    def smallest_group(self) -> int:
        """Fewest completions of a stored group."""
        return self.n

    def targets(self, draws: ScoredDraws) -> SFTBoNTargets:
        """A group with fewer than n valid rewards takes no part."""
        weights = imitation(draws.anchor_rewards, self.n, self.imitate)
        return SFTBoNTargets(
            train_policy=no_draw(draws.policy_rewards),
            train_anchor=weights.trained,
            signal=weights.contrast.any(-1),
            contrast=weights.contrast,
            pull=weights.pull,
            reference_token_logprobs=of_trained(draws, weights.trained),
        )

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b 0 t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: SFTBoNTargets,
    ) -> Float[Tensor, " b"]:
        """KL(pi_n || pi) up to a constant, on all draws that took part; nats."""
        by_draw = imitation_loss(
            anchor_logprobs, targets.reference_token_logprobs, targets.contrast, targets.pull
        )
        return by_draw.sum(-1)
