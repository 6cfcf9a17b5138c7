"""J-BOND (arXiv:2407.14622, Algorithm 2): Jeffreys divergence to best-of-2 of a moving anchor."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.maths.losses import imitation_loss, jeffreys, policy_gradient_loss
from nonpareil.maths.quantiles import two_sample_log_quantile, two_sample_log_tilt
from nonpareil.methods.advantages import advantages, signal_advantages, tells
from nonpareil.methods.base import Method, PolicyGradientTargets, ScoredDraws
from nonpareil.methods.imitation import Imitation, imitation, of_trained
from nonpareil.settings import option

TwoSampleEstimator = Literal["two_sample", "tie_aware"]


@dataclass(frozen=True)
class JBONDTargets(PolicyGradientTargets):
    """Per prompt: which anchor draw to imitate, and how much the policy's own draw is worth.

    `advantages`, of the backward KL: reward and log-ratio, each less its own mean over other prompts, nats.
    """

    contrast: Float[Tensor, "b 2"]
    """Of the forward KL: 1/2 at the better anchor draw, -1/2 at the other; 0 where they tie."""
    pull: Float[Tensor, "b 2"]
    """Of the forward KL: 1/2 each, of KL(anchor || pi); 0 where that KL weighs nothing."""
    anchor_token_logprobs: Float[Tensor, "b 2 t"]
    kl_advantages: Float[Tensor, "b 1"]
    """Of KL(pi || anchor): log-ratio minus that of the other prompts, nats."""


@dataclass(frozen=True)
class JBOND(Method):
    """One policy draw and two anchor draws per prompt.

    `jeffreys_weight` w: (1 - w) weighs the forward KL (imitate the better anchor draw), w the backward KL
    (policy gradient). `kl_coef` is the paper's gamma, on KL(pi || anchor).

    `quantile_estimator`: `two_sample` is the paper's reward, -log 16 below both anchor draws, made for rewards
    without ties. With 0/1 rewards it tells right from wrong only where both anchor draws are right, which is rare
    where right answers are: at success rates of .05 to .2 and w = .5 half of best-of-2's gain is reached, two
    thirds at .3, all of it from .7 on. `tie_aware` counts ties: at least .95 of the gain from .05 to .95.

    The paper's printed gradient of the gamma term has the wrong sign; this descends its equation 19. Forward and
    backward KL have the paper's expected gradients, with control variates that make a prompt whose three rewards
    tie add a pull to the anchor alone: see `methods.imitation` and `methods.advantages`.

    Raises:
        ConfigError: w outside [0, 1], a negative kl_coef, or another word for `quantile_estimator`.
    """

    jeffreys_weight: float = option(
        0.5, "Weight of the backward KL; the forward KL has the rest.", at_least=0, at_most=1
    )
    kl_coef: float = option(
        0.0, "Weight of KL(policy || anchor).", at_least=0, why="below 0 it would reward leaving the anchor"
    )

    quantile_estimator: TwoSampleEstimator = option(
        "two_sample", "The paper's reward, or tie_aware for 0/1 rewards and others that tie."
    )

    policy_draws: ClassVar = 1
    anchor_draws: ClassVar = 2
    anchor_ema_rate: ClassVar = 0.02

    @property
    def hint_for_two_rewards(self) -> str | None:
        """What to say once, where the rewards turn out to have two values only."""
        if self.quantile_estimator == "tie_aware" or not self.jeffreys_weight:
            return None
        return (
            "the rewards have two values only, and J-BOND's own estimator, made for rewards without ties, reaches "
            "about half of best-of-2's gain where few answers are right; quantile_estimator=tie_aware reaches it"
        )

    @property
    def inert_settings(self) -> dict[str, str]:
        """The forward KL alone estimates no quantile."""
        return {} if self.jeffreys_weight else {"quantile_estimator": "jeffreys_weight=0"}

    def targets(self, draws: ScoredDraws) -> JBONDTargets:
        """Steps 1 to 3 of Algorithm 2, without gradients. A prompt with a failed reward takes no part."""
        valid = usable(draws)

        # Forward KL: imitate the better of the anchor's two draws, less their mean.
        better = Imitation.none(draws.anchor_rewards)
        if self.jeffreys_weight < 1:
            better = imitation(draws.anchor_rewards, 2, "winner").where(valid)

        # Backward KL: is the policy's own draw where best-of-2 would put it?
        worth = _ESTIMATORS[self.quantile_estimator](draws.policy_rewards[:, 0], draws.anchor_rewards)
        gains = signal_advantages(worth[:, None], 0.0, draws.anchor_rewards, valid[:, None], "batch")
        kl_advantages = advantages(draws.log_ratio, valid[:, None], "batch")

        return JBONDTargets(
            train_policy=valid[:, None],
            train_anchor=better.trained,
            signal=better.contrast.any(-1) | tells(gains, draws, valid[:, None] & (self.jeffreys_weight > 0)),
            contrast=better.contrast,
            pull=better.pull,
            anchor_token_logprobs=of_trained(draws, better.trained),
            advantages=gains - kl_advantages,
            kl_advantages=kl_advantages,
        )

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b 1 t"],
        anchor_logprobs: Float[Tensor, "b 2 t"],
        targets: JBONDTargets,
    ) -> Float[Tensor, " b"]:
        """Step 4 of Algorithm 2: (1 - w) forward + w backward + gamma KL(pi || anchor), one number per prompt."""
        own = policy_logprobs[:, 0].sum(-1)
        forward = imitation_loss(
            anchor_logprobs, targets.anchor_token_logprobs, targets.contrast, targets.pull
        ).sum(-1)
        backward = policy_gradient_loss(own, targets.advantages[:, 0])
        kl_to_anchor = policy_gradient_loss(own, -targets.kl_advantages[:, 0])
        return jeffreys(forward, backward, self.jeffreys_weight) + self.kl_coef * kl_to_anchor

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """How often the penalty fires (1/3 at the start, for rewards without ties)."""
        valid = usable(draws)
        below_both = draws.policy_rewards[:, 0] < draws.anchor_rewards.amin(-1)
        return {"jbond/penalty_rate": below_both[valid].float().mean().item()} if valid.any() else {}


def usable(draws: ScoredDraws) -> Bool[Tensor, " b"]:
    """True where all three rewards of a prompt are there."""
    return ~(draws.policy_rewards.isnan().any(-1) | draws.anchor_rewards.isnan().any(-1))


_ESTIMATORS = {"two_sample": two_sample_log_quantile, "tie_aware": two_sample_log_tilt}
