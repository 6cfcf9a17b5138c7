"""SFT on best-of-n: imitate the winner of stored groups. The forward KL of BOND, offline."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.losses import forward_kl_loss
from nonpareil.methods.base import BEST_OF_1, ScoredDraws, Targets
from nonpareil.methods.imitation import Imitate, imitation_weights
from nonpareil.settings import check_settings, option


@dataclass(frozen=True)
class SFTBoNTargets(Targets):
    """How much each stored draw is imitated."""

    weights: Float[Tensor, "b m"]


@dataclass(frozen=True)
class SFTBoN:
    """Stored groups of m >= n reference draws; recovers best-of-n where model and data allow (PAPERS.md, 2 and 4).

    `imitate`: the `winner` of n draws, or `all` m with their rank weights, which is the same in the mean, uses
    every draw and costs m log-probs.

    Raises:
        ConfigError: n below 2, or another word for `imitate`.
    """

    n: int = option(8, "The target is best-of-n.", at_least=2, why=BEST_OF_1)
    imitate: Imitate = option("winner", "The winner of n draws, or all draws with their rank weights.")

    policy_draws: ClassVar = 0
    anchor_draws: ClassVar = 0
    anchor_ema_rate: ClassVar = None
    stored_groups: ClassVar = "required"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def smallest_group(self) -> int:
        """Fewest completions of a stored group."""
        return self.n

    def targets(self, draws: ScoredDraws) -> SFTBoNTargets:
        """A group with fewer than n valid rewards takes no part."""
        weights = imitation_weights(draws.anchor_rewards, draws.tie_breaker, self.n, self.imitate)
        none = draws.policy_rewards.bool()  # [b, 0]
        return SFTBoNTargets(train_policy=none, train_anchor=weights > 0, weights=weights)

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b 0 t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: SFTBoNTargets,
    ) -> Float[Tensor, " b"]:
        """-log pi of best-of-n samples, summed over tokens, nats."""
        return (targets.weights * forward_kl_loss(anchor_logprobs.sum(-1))).sum(-1)

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """Nothing besides the common figures."""
        return {}
