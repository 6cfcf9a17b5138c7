"""What an evaluation finds: a policy against its reference, one metric a field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nonpareil.evaluation.by_prompt import ByPrompt
from nonpareil.evaluation.by_source import SourceMetrics
from nonpareil.evaluation.worth import BestOfNPoint, PassAtN, PlanePoint
from nonpareil.files import from_jsonable, jsonable
from nonpareil.maths.bootstrap import Interval


@dataclass(frozen=True)
class RewardComparison:
    """One reward on both sides. Over the prompts where each side has a reward that did not fail."""

    reward: str
    """The reward's name; `rewards` is the aggregate."""
    num_prompts: int
    policy_mean: Interval
    reference_mean: Interval
    difference: Interval
    win_rate: Interval
    """Share of all policy-reference pairs within a prompt that the policy wins, ties one half."""
    wins: Interval
    ties: Interval
    losses: Interval
    policy_failed: int
    """Rewards that failed; left out of every metric, never a number."""
    reference_failed: int
    zero_one: bool
    """Whether every reward is 0 or 1: then the means are success rates (pass@1)."""
    frontier: tuple[PlanePoint, ...]
    """The highest win rate under this reward of any policy at a KL, ties counted, from the reference on."""
    pass_at: tuple[PassAtN, ...]
    """pass@n at the targets' n; empty unless `zero_one`."""


@dataclass(frozen=True)
class OneOfSeveral:
    """One of the rewards whose weighted sum is the reward; over the prompts where each side has some of it."""

    reward: str
    policy_mean: Interval | None
    """None where no prompt has it on both sides."""
    reference_mean: Interval | None
    win_rate: Interval | None
    """Under this reward alone, ties one half."""
    zero_one: bool
    """Whether every value is 0 or 1: then the means are success rates."""


@dataclass(frozen=True)
class Target:
    """Distance to best-of-n of the reference, in nats."""

    n: int
    backward_kl: Interval
    """KL(pi || pi_n), biased low."""
    backward_kl_bias: float
    """By how much at most for a policy no worse than its reference, (n-1) / (M+1); failed rewards raise it."""
    forward_kl: Interval | None
    """KL(pi_n || pi); None without `reference_log_ratio`, or with fewer than n reference completions."""
    win_rate_ceiling: float
    """What best-of-n of these reference groups itself reaches, ties counted; n / (n+1) where none tie."""
    kl_upper_bound: float
    """What it spends, nats, ties counted; log n - (n-1)/n where none tie, and that at most."""


@dataclass(frozen=True)
class Completions:
    """How one side writes."""

    num_completions: int
    """A prompt."""
    mean_length: Interval
    """Tokens, the end token included."""
    stopped_ratio: Interval
    """Share that ended with an end token."""
    clipped_ratio: Interval
    """Share that was cut at the length limit."""
    distinct: dict[str, Interval | None]
    """Distinct 1-, 2- and 3-grams over all of them within a prompt; as many completions on both sides."""


@dataclass(frozen=True)
class LengthStratum:
    """The pairs where the policy's completion is longer, equally long or shorter."""

    policy_is: str
    share: Interval | None
    """Of all scored pairs."""
    win_rate: Interval | None
    """None where there is no such pair."""


@dataclass(frozen=True)
class Evaluation:
    """A policy against its reference; every interval is a paired bootstrap over prompts."""

    num_prompts: int
    comparison: RewardComparison
    kl: Interval
    """KL(policy || reference), nats per completion."""
    kl_estimator: str
    log_ratio: Interval
    """The sampled log pi - log pi_ref on the policy's completions: the same KL, noisier; can be negative."""
    log_ratio_estimator: str
    equivalent_n: Interval | None
    """The real N whose best-of-N of the same reference groups, ties counted, has this win rate. At most
    `largest_n`, where it means as much or more; None where no N is told apart: all rewards tie, or M is 1."""
    largest_n: int
    """The largest N that the reference groups can show, M - 1."""
    kl_efficiency: Interval | None
    """Least KL that any policy needs for this win rate, ties counted / KL spent; None where none was (`Worth`)."""
    rho_squared: Interval | None
    """Squared correlation, within prompts, of the log-ratio with the reward's quantile, on the reference's
    completions: the KL efficiency of a small step in the policy's direction. Negative where the log-ratio falls as
    the reward rises; None without `reference_log_ratio`, and where it cannot be told (`rho_squared_of`)."""
    best_of_n: tuple[BestOfNPoint, ...]
    """Best-of-n of the reference on the plane of KL and win rate."""
    rewards_tie: bool
    """Whether any two rewards of a reference group are equal."""
    targets: tuple[Target, ...]
    policy: Completions
    reference: Completions
    length_strata: tuple[LengthStratum, ...]
    unseen: RewardComparison | None
    """A reward that was not trained on."""
    by_prompt: ByPrompt
    each_reward: tuple[OneOfSeveral, ...] = ()
    """The rewards apart, where there are several; in the order of their sum."""
    by_source: tuple[SourceMetrics, ...] = ()
    """Of a mixture each dataset apart, by name; empty of other prompts."""
    dtype: str | None = None
    """Of both models' weights, whatever they are stored in: for these the metrics hold."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what cannot be computed is null, infinities are the texts "Infinity" and "-Infinity"."""
        return jsonable(self, keep_infinities=True)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """What `to_dict` gave, in `report.json`; a mean that could not be computed is NaN again.

        Raises:
            DataError: a part that is not there, as in an evaluation by an earlier version.
        """
        return from_jsonable(cls, content, "evaluation")
