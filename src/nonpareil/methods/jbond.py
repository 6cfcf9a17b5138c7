"""J-BOND (arXiv:2407.14622, Algorithm 2): Jeffreys divergence to best-of-2 of a moving anchor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.maths.losses import forward_kl_loss, jeffreys, leave_one_out_mean, policy_gradient_loss
from nonpareil.maths.quantiles import two_sample_log_quantile
from nonpareil.methods.base import ScoredDraws, Targets, best_draw
from nonpareil.settings import check_settings, option


@dataclass(frozen=True)
class JBONDTargets(Targets):
    """Per prompt: which anchor draw to imitate, and how much the policy's own draw is worth."""

    advantages: Float[Tensor, " b"]
    """Of the backward KL: return minus the mean return of the other prompts, nats."""
    kl_advantages: Float[Tensor, " b"]
    """Of KL(pi || anchor): log-ratio minus that of the other prompts, nats."""


@dataclass(frozen=True)
class JBOND:
    """One policy draw and two anchor draws a prompt.

    `jeffreys_weight` w: (1 - w) weighs the forward KL (imitate the better anchor draw), w the backward KL
    (policy gradient). `kl_coef` is the paper's gamma, on KL(pi || anchor).

    The paper's printed gradient of the gamma term has the wrong sign; this descends its equation 19.

    Raises:
        ConfigError: w outside [0, 1], or a negative kl_coef.
    """

    jeffreys_weight: float = option(
        0.5, "Weight of the backward KL; the forward KL has the rest.", at_least=0, at_most=1
    )
    kl_coef: float = option(
        0.0, "Weight of KL(policy || anchor).", at_least=0, why="below 0 it would reward leaving the anchor"
    )

    policy_draws: ClassVar = 1
    anchor_draws: ClassVar = 2
    anchor_ema_rate: ClassVar = 0.02

    def __post_init__(self) -> None:
        check_settings(self)

    def targets(self, draws: ScoredDraws) -> JBONDTargets:
        """Steps 1 to 3 of Algorithm 2, without gradients. A prompt with a failed reward takes no part."""
        rewards, log_ratio, valid = draws.policy_rewards[:, 0], draws.log_ratio[:, 0], usable(draws)

        # Forward KL: imitate the better of the anchor's two draws.
        best = best_draw(draws.anchor_rewards, draws.tie_breaker)

        # Backward KL: is the policy's own draw where best-of-2 would put it?
        returns = two_sample_log_quantile(rewards, draws.anchor_rewards) - log_ratio
        return JBONDTargets(
            train_policy=valid[:, None],
            train_anchor=best & valid[:, None],
            advantages=torch.where(valid, returns - leave_one_out_mean(returns, valid), 0.0),
            kl_advantages=torch.where(valid, log_ratio - leave_one_out_mean(log_ratio, valid), 0.0),
        )

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b 1 t"],
        anchor_logprobs: Float[Tensor, "b 2 t"],
        targets: JBONDTargets,
    ) -> Float[Tensor, " b"]:
        """Step 4 of Algorithm 2: (1 - w) forward + w backward + gamma KL(pi || anchor), one number a prompt."""
        own = policy_logprobs[:, 0].sum(-1)
        forward = forward_kl_loss((anchor_logprobs.sum(-1) * targets.train_anchor).sum(-1))
        backward = policy_gradient_loss(own, targets.advantages)
        kl_to_anchor = policy_gradient_loss(own, -targets.kl_advantages)
        return jeffreys(forward, backward, self.jeffreys_weight) + self.kl_coef * kl_to_anchor

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """How often the penalty fires (1/3 at the start, for rewards without ties)."""
        valid = usable(draws)
        below_both = draws.policy_rewards[:, 0] < draws.anchor_rewards.amin(-1)
        return {"jbond/penalty_rate": below_both[valid].float().mean().item()} if valid.any() else {}


def usable(draws: ScoredDraws) -> Bool[Tensor, " b"]:
    """True where all three rewards of a prompt are there."""
    return ~(draws.policy_rewards.isnan().any(-1) | draws.anchor_rewards.isnan().any(-1))
