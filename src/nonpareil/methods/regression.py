"""Pointwise regression of the log-ratio on best-of-n's own, after QRPO (arXiv:2507.08068): any n from any m."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.losses import log_ratio_regression_loss
from nonpareil.maths.quantiles import QuantileEstimator, group_log_tilt, log_tilt_estimate
from nonpareil.methods.advantages import mean_over
from nonpareil.methods.base import ScoredDraws, Targets, check_choice, check_range
from nonpareil.methods.bond import check_n, quantile_metrics

Weighting = Literal["uniform", "tilt", "sqrt_tilt"]


@dataclass(frozen=True)
class RegressionTargets(Targets):
    """The log-ratio that best-of-n has at each draw that is trained on, in nats, and each draw's weight."""

    policy_target: Float[Tensor, "b k"]
    anchor_target: Float[Tensor, "b m"]
    policy_reference_logprobs: Float[Tensor, "b k"]
    anchor_reference_logprobs: Float[Tensor, "b m"]
    weights: Float[Tensor, "b m"]
    """Of stored draws; rows sum to the number of valid draws."""


@dataclass(frozen=True)
class Regression:
    """Fits log pi - log pi_ref to log(pi_n / pi_ref), which needs no partition function: it is 1.

    With stored groups of m reference draws it trains on those, each ranked in its own group; otherwise on k fresh
    policy draws, ranked among m fresh draws of the reference. n may exceed m.

    `weighting` of stored draws keeps the worst ranks, whose targets are the largest, from drowning the rest:
    `uniform`, `tilt` (in proportion to best-of-n's probability of the rank, the expected square under best-of-n)
    or its square root. See docs/estimators.md for what each costs in bias.

    Raises:
        ConfigError: a setting out of its range.
    """

    n: int = 8
    weighting: Weighting = "tilt"
    num_generations: int = 4
    num_reference_samples: int = 16
    quantile_estimator: QuantileEstimator = "harmonic"
    stored: bool = False

    anchor_ema_rate: ClassVar = None
    stored_groups: ClassVar = "optional"
    unread_with_groups: ClassVar = ("num_generations", "num_reference_samples", "quantile_estimator")
    unread_without_groups: ClassVar = ("weighting",)
    smallest_group: ClassVar = 2

    def __post_init__(self) -> None:
        check_n(self.n)
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_choice("quantile_estimator", self.quantile_estimator, get_args(QuantileEstimator))
        check_range("num_generations", self.num_generations, 1, float("inf"))
        check_range("num_reference_samples", self.num_reference_samples, 1, float("inf"))

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
        lone = (~group.isnan()).sum(-1, keepdim=True) < self.smallest_group
        valid = ~group.isnan() & ~lone if self.stored else torch.zeros_like(group, dtype=torch.bool)
        return RegressionTargets(
            train_policy=~own.isnan(),
            train_anchor=valid,
            policy_target=own.nan_to_num(nan=0.0),
            anchor_target=group.nan_to_num(nan=0.0),
            policy_reference_logprobs=draws.anchor_logprobs_of_policy,
            anchor_reference_logprobs=draws.anchor_logprobs,
            weights=self.weights(group).masked_fill(~valid, 0.0),
        )

    def weights(self, log_tilt: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Each stored draw's weight; rows sum to the number of draws whose reward did not fail (NaN)."""
        power = {"uniform": 0.0, "sqrt_tilt": 0.5, "tilt": 1.0}[self.weighting]
        scaled = torch.where(log_tilt.isnan(), -torch.inf, power * log_tilt)
        return scaled.softmax(-1).nan_to_num(nan=0.0) * (~log_tilt.isnan()).sum(-1, keepdim=True)

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b k t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: RegressionTargets,
    ) -> Float[Tensor, " b"]:
        """Half the mean squared error of the log-ratio over the prompt's trained draws, nats squared."""
        if self.stored:
            log_ratio = anchor_logprobs.sum(-1) - targets.anchor_reference_logprobs
            squared = targets.weights * log_ratio_regression_loss(log_ratio, targets.anchor_target)
            return mean_over(squared, targets.train_anchor)
        log_ratio = policy_logprobs.sum(-1) - targets.policy_reference_logprobs
        return mean_over(log_ratio_regression_loss(log_ratio, targets.policy_target), targets.train_policy)

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """As BOND's, of fresh draws; nothing besides the common figures of stored ones."""
        return {} if self.stored else quantile_metrics(draws, self.n, self.quantile_estimator)
