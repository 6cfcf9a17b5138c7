"""vBoN (arXiv:2407.06057): backward KL to best-of-n of the fixed reference, by policy gradient or clipped PPO."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.maths.best_of_n import log_tilt
from nonpareil.maths.counts import count_among
from nonpareil.maths.losses import clipped_policy_gradient_loss, policy_gradient_loss
from nonpareil.maths.quantiles import log_quantile, log_tilt_estimate
from nonpareil.methods.advantages import (
    Baseline,
    advantages,
    check_baseline,
    mean_over,
    signal_advantages,
    tells,
)
from nonpareil.methods.base import BEST_OF_1, Method, PolicyGradientTargets, ScoredDraws, no_draw
from nonpareil.settings import option

Bound = Literal["l1", "exact"]
StrictEstimator = Literal["plug_in", "harmonic"]


@dataclass(frozen=True)
class VBONTargets(PolicyGradientTargets):
    """What each of the policy's own draws is worth, and how it was drawn.

    `advantages`: reward of the bound less the log-ratio to the reference, less a baseline, nats.
    """

    sampled_token_logprobs: Float[Tensor, "b k t"]
    completion_mask: Bool[Tensor, "b k t"]


@dataclass(frozen=True)
class VBON(Method):
    """k policy draws per prompt; quantiles from cached reference rewards (stored groups) or m fresh draws.

    `bound`: `exact` is log(p<=^n - p<^n) - log pi_ref, with p<= = p< + pi_ref(y), or both counted where reference
    rewards equal the draw's; `l1` its lower bound (n - 1) log p<. Both stand beside one KL of weight 1: the
    released code's exact reward has another scale, and so another n (docs/papers.md#vbon). With rewards that tie,
    only `exact` ends at best-of-n. `num_iterations`: optimizer steps on one batch of draws, clipped at `epsilon` by
    per-token ratios where there is more than one. `baseline`: the mean return of the batch's or the
    prompt's other draws; with `batch`, of the reward's part, over prompts whose reference rewards differ.

    Raises:
        ConfigError: a setting out of its range.
    """

    n: int = option(8, "The target is best-of-n.", at_least=2, why=BEST_OF_1)
    bound: Bound = option("exact", "The exact reward, or its lower bound.")
    num_generations: int = option(4, "Completions of the policy per prompt and step, k.", at_least=1)
    num_reference_samples: int = option(
        16, "Fresh completions of the anchor per prompt and step, m.", at_least=1
    )
    quantile_estimator: StrictEstimator = option(
        "plug_in", "How quantiles are estimated from the anchor's draws."
    )
    baseline: Baseline = option(
        "batch",
        "Mean return of the other draws of the batch (of the reward's part, over prompts whose reference rewards "
        "differ), or of the prompt.",
    )
    num_iterations: int = option(1, "Optimizer steps on one batch of draws.", at_least=1)
    epsilon: float = option(0.2, "Clip range of the per-token ratios.", above=0, below=1)
    stored: bool = False

    stored_groups: ClassVar = "optional"
    unread_with_groups: ClassVar = ("num_reference_samples",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baseline, self.num_generations)

    @property
    def policy_draws(self) -> int:
        """k."""
        return self.num_generations

    @property
    def anchor_draws(self) -> int:
        """m; none where reference rewards are cached."""
        return 0 if self.stored else self.num_reference_samples

    @property
    def inert_settings(self) -> dict[str, str]:
        """One step per batch of draws has nothing to clip."""
        return {"epsilon": "num_iterations=1"} if self.num_iterations == 1 else {}

    def targets(self, draws: ScoredDraws) -> VBONTargets:
        """Without gradients. A draw whose reward failed, or whose prompt has no reference reward, takes no part."""
        worth = self.log_target(draws)
        valid = ~(worth - draws.log_ratio).isnan()
        gains = signal_advantages(
            worth, self._worth_of_tie(draws), draws.anchor_rewards, valid, self.baseline
        )
        return VBONTargets(
            train_policy=valid,
            train_anchor=no_draw(draws.anchor_rewards),
            signal=tells(gains, draws, valid),
            advantages=gains - advantages(draws.log_ratio, valid, self.baseline),
            sampled_token_logprobs=draws.policy_token_logprobs,
            completion_mask=draws.completion_mask,
        )

    def log_target(self, draws: ScoredDraws) -> Float[Tensor, "b k"]:
        """log pi_n - log pi_ref of the policy's draws as the bound has it, nats; NaN where it cannot be told."""
        log_strict = log_quantile(draws.policy_rewards, draws.anchor_rewards, self.quantile_estimator)
        if self.bound == "l1":
            return (self.n - 1) * log_strict
        counts = count_among(draws.policy_rewards, draws.anchor_rewards)
        strict = log_strict.exp()
        alone = log_tilt(strict, (strict + draws.anchor_logprobs_of_policy.exp()).clamp(max=1), self.n)
        # A tie class's mass is counted, not added to the estimate of p<, which already leans towards its middle.
        tied = log_tilt_estimate(draws.policy_rewards, draws.anchor_rewards, self.n, self.quantile_estimator)
        return torch.where(counts.at_or_below > counts.below, tied, alone)

    def _worth_of_tie(self, draws: ScoredDraws) -> Float[Tensor, "b k"]:
        """`log_target` of a draw that equals all references, where they are equal; means nothing elsewhere."""
        highest = draws.anchor_rewards.masked_fill(draws.anchor_rewards.isnan(), -torch.inf).amax(-1, True)
        return self.log_target(replace(draws, policy_rewards=highest.expand_as(draws.policy_rewards)))

    def loss(
        self,
        policy_logprobs: Float[Tensor, "b k t"],
        anchor_logprobs: Float[Tensor, "b m t"],
        targets: VBONTargets,
    ) -> Float[Tensor, " b"]:
        """The policy gradient of KL(pi || pi_n), a mean over the prompt's draws, nats."""
        if self.num_iterations == 1:
            own = policy_gradient_loss(policy_logprobs.sum(-1), targets.advantages)
        else:
            own = clipped_policy_gradient_loss(
                policy_logprobs,
                targets.sampled_token_logprobs,
                targets.advantages,
                self.epsilon,
                targets.completion_mask,
            )
        return mean_over(own, targets.train_policy)

    def metrics(self, draws: ScoredDraws) -> dict[str, float]:
        """KL(pi || pi_n) as the policy's own draws see it, up to the bound's constant, nats."""
        gap = draws.log_ratio - self.log_target(draws)
        return {} if gap.isnan().all() else {"kl_to_target": gap.nanmean().item()}
