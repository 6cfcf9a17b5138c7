"""Pointwise regression of the log-ratio on best-of-n's own, after QRPO (arXiv:2507.08068): any n from any m."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.losses import log_ratio_regression_loss
from nonpareil.maths.quantiles import QuantileEstimator, group_log_tilt, log_tilt_estimate
from nonpareil.methods.advantages import mean_over
from nonpareil.methods.base import BEST_OF_1, Method, ScoredDraws, Targets, no_draw
from nonpareil.methods.bond import check_estimator, quantile_metrics
from nonpareil.settings import option


@dataclass(frozen=True)
class RegressionTargets(Targets):
    """The log-ratio that best-of-n has at each draw that is trained on, in nats, and each draw's weight."""

    policy_target: Float[Tensor, "b k"]
    anchor_target: Float[Tensor, "b m"]
    policy_reference_logprobs: Float[Tensor, "b k"]
    anchor_reference_logprobs: Float[Tensor, "b m"]


@dataclass(frozen=True)
class Regression(Method):
    """Fits log pi - log pi_ref to log(pi_n / pi_ref), which needs no partition function: it is 1.

    With stored groups of m reference draws it trains on those, each ranked in its own group; otherwise on k fresh
    policy draws, ranked among m fresh draws of the reference. n may exceed m. Where all rewards tie every target is
    0: a pull to the reference.

    `target_floor`, nats: no target is lower. Without it the worst ranks, whose targets are the largest, make most
    of the gradient; docs/estimators.md has what it costs, and why weights by rank, which would seem the natural
    remedy, miss best-of-n (a lucky rank counts as a good completion).

    Raises:
        ConfigError: a setting out of its range.
    """

    n: int = option(8, "The target is best-of-n.", at_least=2, why=BEST_OF_1)
    target_floor: float = option(-6.0, "No target log-ratio is lower, nats.", at_most=0, also=(-math.inf,))
    num_generations: int = option(4, "Completions of the policy per prompt and step, k.", at_least=1)
    num_reference_samples: int = option(
        16, "Fresh completions of the anchor per prompt and step, m.", at_least=1
    )
    quantile_estimator: QuantileEstimator = option(
        "harmonic", "How quantiles are estimated from the anchor's draws."
    )
    stored: bool = False

    stored_groups: ClassVar = "optional"
    unread_with_groups: ClassVar = ("num_generations", "num_reference_samples", "quantile_estimator")
    smallest_group: ClassVar = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_estimator(self.quantile_estimator, self.num_reference_samples)

    @property
    def policy_draws(self) -> int:
        """k; none where stored draws are trained on."""
        return 0 if self.stored else self.num_generations

    @property
    def anchor_draws(self) -> int:
        """m; none where groups are stored."""
        return 0 if self.stored else self.num_reference_samples

    def targets(self, draws: ScoredDraws) -> RegressionTargets:
        """Without gradients. Failed rewards take no part."""
        own = log_tilt_estimate(draws.policy_rewards, draws.anchor_rewards, self.n, self.quantile_estimator)
        group = group_log_tilt(draws.anchor_rewards, self.n)
        policy_target, anchor_target = (
            each.nan_to_num(nan=0.0).clamp(min=self.target_floor) for each in (own, group)
        )
        return RegressionTargets(
            train_policy=~own.isnan(),
            train_anchor=~group.isnan() if self.stored else no_draw(draws.anchor_rewards),
            signal=draws.rewards_differ & ~(group if self.stored else own).isnan().all(-1),
            policy_target=policy_target,
            anchor_target=anchor_target,
            policy_reference_logprobs=draws.anchor_logprobs_of_policy,
            anchor_reference_logprobs=draws.anchor_logprobs.nan_to_num(nan=0.0),
        )

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b k t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: RegressionTargets,
    ) -> Float[Tensor, " b"]:
        """Half the mean squared error of the log-ratio over the prompt's trained draws, nats squared."""
        if self.stored:
            log_ratio = anchor_logprobs.sum(-1) - targets.anchor_reference_logprobs
            return mean_over(
                log_ratio_regression_loss(log_ratio, targets.anchor_target), targets.train_anchor
            )
        log_ratio = policy_logprobs.sum(-1) - targets.policy_reference_logprobs
        return mean_over(log_ratio_regression_loss(log_ratio, targets.policy_target), targets.train_policy)

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """As BOND's, of fresh draws; nothing besides the common numbers of stored ones."""
        return {} if self.stored else quantile_metrics(draws, self.n, self.quantile_estimator)
