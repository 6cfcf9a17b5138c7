"""BOND (arXiv:2407.14622): Jeffreys divergence to best-of-n of the anchor, quantiles from fresh anchor draws."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.losses import imitation_loss, jeffreys, policy_gradient_loss
from nonpareil.maths.quantiles import QuantileEstimator, log_tilt_estimate
from nonpareil.methods.advantages import (
    Baseline,
    advantages,
    check_baseline,
    mean_over,
    signal_advantages,
    tells,
)
from nonpareil.methods.base import BEST_OF_1, Method, PolicyGradientTargets, ScoredDraws
from nonpareil.methods.imitation import Imitate, Imitation, imitation, of_trained
from nonpareil.settings import option


@dataclass(frozen=True)
class BONDTargets(PolicyGradientTargets):
    """How much each draw is imitated, and what each of the policy's own draws is worth.

    `advantages`, of the backward KL: log pi_n - log pi, less a baseline, nats.
    """

    contrast: Float[Tensor, "b m"]
    """Of the forward KL: the chance that an anchor draw is the best of n, less the mean one."""
    pull: Float[Tensor, "b m"]
    """Of the forward KL: how much an anchor draw holds the policy at the anchor."""
    anchor_token_logprobs: Float[Tensor, "b m t"]


@dataclass(frozen=True)
class BOND(Method):
    """k policy draws and m anchor draws per prompt; the anchor is the reference, or is refreshed, or follows.

    The paper's iterative BOND: anchor = reference; repeat: distil best-of-n of the anchor, then anchor = policy.
    After M rounds that is best-of-n^M of the reference, with an n that is cheap to draw. This class is the inner
    loop, and sees the anchor by its draws alone. The outer loop is the trainer's: `anchor_refresh_steps` moves the
    anchor, as in the paper (n of 2 or 4, every 1,000 steps), or `anchor_ema_rate`, little by little, as in J-BOND.
    With neither the anchor stays the reference.

    `n`: the target. `num_generations`: k. `num_reference_samples`: m, from which quantiles are estimated and
    best-of-n samples are taken. `jeffreys_weight` w: (1 - w) weighs the forward KL, w the backward KL.
    `imitate`: the `winner` of n anchor draws, or `all` m with their rank weights: less noise, m log-probs for n.
    `baseline`: the mean return of the other draws of the batch (the paper's; of the reward's part, over prompts
    whose anchor rewards differ) or of the prompt.

    Both sides have the paper's expected gradients, with control variates that make a prompt whose rewards all tie
    add a pull to the anchor alone: see `methods.imitation` and `methods.advantages`.

    The paper drops the tie term of the quantile reward; it is here, so that ties and binary rewards reach
    best-of-n too.

    Raises:
        ConfigError: a setting out of its range, or fewer than n anchor draws where some are to be imitated.
    """

    n: int = option(4, "The target is best-of-n.", at_least=2, why=BEST_OF_1)
    num_generations: int = option(1, "Completions of the policy per prompt and step, k.", at_least=1)
    num_reference_samples: int = option(
        16, "Fresh completions of the anchor per prompt and step, m.", at_least=1
    )
    quantile_estimator: QuantileEstimator = option(
        "harmonic", "How quantiles are estimated from the anchor's draws."
    )
    jeffreys_weight: float = option(
        0.5, "Weight of the backward KL; the forward KL has the rest.", at_least=0, at_most=1
    )
    imitate: Imitate = option("winner", "The winner of n draws, or all draws with their rank weights.")
    baseline: Baseline = option(
        "batch",
        "Mean return of the other draws of the batch (of the reward's part, over prompts whose anchor rewards "
        "differ), or of the prompt.",
    )

    anchor_ema_rate: ClassVar = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_estimator(self.quantile_estimator, self.num_reference_samples)
        check_baseline(self.baseline, self.num_generations)
        if self.jeffreys_weight < 1 and self.num_reference_samples < self.n:
            raise ConfigError(
                f"num_reference_samples={self.num_reference_samples} is fewer than n={self.n}: the forward KL "
                "imitates the best of n anchor draws; draw more, or give jeffreys_weight=1"
            )

    @property
    def policy_draws(self) -> int:
        """k."""
        return self.num_generations

    @property
    def anchor_draws(self) -> int:
        """m."""
        return self.num_reference_samples

    @property
    def inert_settings(self) -> dict[str, str]:
        """Settings that nothing reads where one side of the divergence weighs nothing, and why."""
        if self.jeffreys_weight == 1:
            return {"imitate": "jeffreys_weight=1"}
        return (
            {}
            if self.jeffreys_weight
            else dict.fromkeys(("quantile_estimator", "baseline"), "jeffreys_weight=0")
        )

    def targets(self, draws: ScoredDraws) -> BONDTargets:
        """Without gradients. Failed rewards are left out; a prompt lacking a whole side takes no part."""
        # Forward KL: which anchor draws are the best of n?
        weights = Imitation.none(draws.anchor_rewards)
        if self.jeffreys_weight < 1:
            weights = imitation(draws.anchor_rewards, self.n, self.imitate)

        # Backward KL: log pi_n - log pi of the policy's own draws. Those that equal all anchor draws have log 1.
        tilt = log_tilt_estimate(draws.policy_rewards, draws.anchor_rewards, self.n, self.quantile_estimator)
        valid = ~(tilt - draws.log_ratio).isnan()
        whole = valid.any(-1) & (weights.trained.any(-1) | (self.jeffreys_weight == 1))
        valid, weights = valid & whole[:, None], weights.where(whole)
        gains = signal_advantages(tilt, 0.0, draws.anchor_rewards, valid, self.baseline)
        trained = valid & (self.jeffreys_weight > 0)
        return BONDTargets(
            train_policy=trained,
            train_anchor=weights.trained,
            signal=weights.contrast.any(-1) | tells(gains, draws, trained),
            contrast=weights.contrast,
            pull=weights.pull,
            anchor_token_logprobs=of_trained(draws, weights.trained),
            advantages=gains - advantages(draws.log_ratio, valid, self.baseline),
        )

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b k t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: BONDTargets,
    ) -> Float[Tensor, " b"]:
        """(1 - w) forward + w backward, nats."""
        by_draw = imitation_loss(
            anchor_logprobs, targets.anchor_token_logprobs, targets.contrast, targets.pull
        )
        own = policy_gradient_loss(policy_logprobs.sum(-1), targets.advantages)
        return jeffreys(by_draw.sum(-1), mean_over(own, targets.train_policy), self.jeffreys_weight)

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """Without ties log_tilt is log n - (n - 1) at the start and log n - (n - 1)/n at best-of-n."""
        return quantile_metrics(draws, self.n, self.quantile_estimator)


def quantile_metrics(draws: ScoredDraws, n: int, estimator: QuantileEstimator) -> dict[str, float]:
    """How far up its reference's rewards the policy is, and KL(pi || pi_n) as its own draws see it, nats."""
    tilt = log_tilt_estimate(draws.policy_rewards, draws.anchor_rewards, n, estimator)
    if tilt.isnan().all():
        return {}
    return {"log_tilt": tilt.nanmean().item(), "kl_to_target": (draws.log_ratio - tilt).nanmean().item()}


def check_estimator(estimator: str, num_reference_samples: int) -> None:
    """Refuse two_sample with another number of reference draws.

    Raises:
        ConfigError: naming the setting and its value.
    """
    if estimator == "two_sample" and num_reference_samples != 2:
        raise ConfigError(
            f"num_reference_samples={num_reference_samples}: quantile_estimator=two_sample needs 2"
        )
