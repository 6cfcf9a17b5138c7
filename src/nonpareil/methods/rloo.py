"""RLOO (arXiv:2402.14740), a baseline: KL-regularised REINFORCE, leave-one-out, on the raw reward."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.losses import policy_gradient_loss
from nonpareil.methods.advantages import advantages, mean_over
from nonpareil.methods.base import Method, PolicyGradientTargets, ScoredDraws, no_draw
from nonpareil.settings import option


@dataclass(frozen=True)
class RLOO(Method):
    """k policy draws per prompt; the return is reward - kl_coef * (log pi - log pi_ref), the KL in nats.

    Where all k rewards tie, what is left is the KL's pull. Knows nothing of best-of-n: its optimum is
    pi_ref * exp(reward / kl_coef), which follows the reward's scale.

    Raises:
        ConfigError: fewer than 2 draws per prompt, or a negative kl_coef.
    """

    num_generations: int = option(
        4, "Completions of the policy per prompt and step, k.", at_least=2, why="the others are the baseline"
    )
    kl_coef: float = option(0.05, "Weight of KL(policy || anchor).", at_least=0)

    follows_reward_scale: ClassVar = True

    @property
    def policy_draws(self) -> int:
        """k."""
        return self.num_generations

    def targets(self, draws: ScoredDraws) -> PolicyGradientTargets:
        """Without gradients. Failed rewards take no part."""
        valid = ~(draws.policy_rewards - draws.log_ratio).isnan()
        valid &= valid.sum(-1, keepdim=True) > 1
        gains = advantages(draws.policy_rewards, valid, "prompt")
        kl_advantages = advantages(draws.log_ratio, valid, "prompt")
        return PolicyGradientTargets(
            train_policy=valid,
            train_anchor=no_draw(draws.anchor_rewards),
            signal=draws.rewards_differ & valid.any(-1),
            advantages=gains - self.kl_coef * kl_advantages,
        )

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b k t"],
        anchor_logprobs: Float[Tensor, "b 0 t"],
        targets: PolicyGradientTargets,
    ) -> Float[Tensor, " b"]:
        """REINFORCE, a mean over the prompt's draws."""
        own = policy_gradient_loss(policy_logprobs.sum(-1), targets.advantages)
        return mean_over(own, targets.train_policy)
