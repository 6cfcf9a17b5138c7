"""What best-of-N is worth for N = 1..m, from groups drawn once: no more drawing, no subsampling noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation.groups import group_size, lengths_of, rewards_of
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.files import jsonable
from nonpareil.maths.best_of_n import kl_upper_bound, win_rate
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.counts import count_among
from nonpareil.maths.order_statistics import best_of_n_curve
from nonpareil.records import Group, refuse_repeated

ENOUGH_GAIN = 0.9


@dataclass(frozen=True)
class CurvePoint:
    """Best-of-n of the policy that drew the groups."""

    n: int
    reward: Interval
    """Expected reward of the best of n; unbiased."""
    win_rate: Interval | None
    """Against one further draw, ties one half; unbiased. None at n = m, where no further draw is left."""
    win_rate_ceiling: float
    """n / (n+1), reached where no rewards tie."""
    kl_upper_bound: float
    """log n - (n-1)/n nats, reached where no rewards tie."""
    tokens_per_prompt: float
    """Mean tokens drawn for one answer; the completions drawn are n."""
    num_prompts: int
    """Prompts with at least n rewards that did not fail."""


@dataclass(frozen=True)
class CurveReport:
    """Best-of-n for n = 1..max_n, and what the groups are made of."""

    points: tuple[CurvePoint, ...]
    num_prompts: int
    num_completions: int
    """A prompt (m)."""
    failed_rewards: int
    frac_reward_zero_std: float
    """Share of scored prompts whose rewards are all equal: there is nothing to choose between."""
    mean_unique_completions: float
    """Different completions a prompt, by token ids."""
    mean_length: float
    """Tokens a completion, the end token included."""

    def recommended_n(self) -> int:
        """The smallest n with 90% of what the largest n gains over one draw; 1 if it gains nothing."""
        rewards = [point.reward.estimate for point in self.points]
        enough = rewards[0] + ENOUGH_GAIN * (rewards[-1] - rewards[0])
        if rewards[-1] <= rewards[0]:
            return 1
        return next(point.n for point in self.points if point.reward.estimate >= enough)

    def recommendation(self) -> str:
        """`recommended_n` in one line."""
        n, last = self.recommended_n(), self.points[-1]
        if n == 1:
            return f"Best-of-{last.n} gains nothing over one draw: the rewards do not tell completions apart."
        gain = last.reward.estimate - self.points[0].reward.estimate
        return (
            f"N = {n} is the smallest with {ENOUGH_GAIN:.0%} of the gain of N = {last.n} "
            f"(reward {self.points[n - 1].reward.estimate:.3g}, gain {gain:.3g} at N = {last.n})."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what cannot be computed is null."""
        return {
            **jsonable(self),
            "recommended_n": self.recommended_n(),
            "recommendation": self.recommendation(),
        }


def best_of_n_report(groups: Sequence[Group], max_n: int | None = None, *, seed: int = 0) -> CurveReport:
    """The best-of-n curve of scored groups, for n = 1..max_n (all m completions if None).

    Intervals are bootstrapped over prompts. Failed rewards are left out, so a prompt stops contributing where
    n exceeds the rewards it has left; `num_prompts` of each point says how many still do, and the curve ends
    before the first n without any.

    Raises:
        DataError: no groups, a prompt id twice, ragged or unscored groups, or no reward that did not fail.
        ConfigError: max_n outside 1..m.
    """
    if not groups:
        raise DataError("There are no groups to make a curve of.")
    size = group_size(groups)
    refuse_repeated((group.prompt_id for group in groups), "groups")
    if max_n is not None and not 1 <= max_n <= size:
        raise ConfigError(f"max_n must lie in 1..{size} (the completions a prompt), got {max_n}.")
    ordered = sorted(groups, key=lambda group: group.prompt_id)
    rewards, mean_length = rewards_of(ordered), lengths_of(ordered).mean().item()
    valid = rewards.isfinite().sum(1)
    if not valid.any():
        raise DataError(f"All {rewards.numel()} rewards failed: there is nothing to select by.")
    reach = min(max_n or size, int(valid.max()))
    return CurveReport(
        points=_points(rewards, reach, mean_length, Bootstrap(seed)),
        num_prompts=len(ordered),
        num_completions=size,
        failed_rewards=int(rewards.isnan().sum()),
        frac_reward_zero_std=_share_of_equal_rewards(rewards[valid > 0]),
        mean_unique_completions=sum(_num_unique(group) for group in ordered) / len(ordered),
        mean_length=mean_length,
    )


def _num_unique(group: Group) -> int:
    ids = group.completion_token_ids
    # A server or vBoN's lines give no ids; then texts, of which two token sequences can make one.
    return len({tuple(one) for one in ids}) if all(ids) else len(set(group.completions))


def _points(rewards: Tensor, reach: int, mean_length: float, bootstrap: Bootstrap) -> tuple[CurvePoint, ...]:
    reward_of_best = best_of_n_curve(rewards, reach)
    wins = win_rate_against_one(rewards)[:, :reach]
    points = []
    for n in range(1, reach + 1):
        values = reward_of_best[:, n - 1]
        points.append(
            CurvePoint(
                n=n,
                reward=bootstrap.mean(values),
                win_rate=bootstrap.mean_or_none(wins[:, n - 1]),
                win_rate_ceiling=win_rate(n),
                kl_upper_bound=kl_upper_bound(n),
                tokens_per_prompt=n * mean_length,
                num_prompts=int(values.isfinite().sum()),
            )
        )
    return tuple(points)


def win_rate_against_one(rewards: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Chance that the best of n draws beats one further draw, ties one half, at n = 1..m of each prompt.

    Unbiased: the mean over every draw and every n-subset of the others, in closed form. A subset's best is
    at most r with chance C(others at or below r, n) / C(others, n), and below r likewise; the win rate is
    one less the mean of the two. Without ties it is n / (n+1) whatever the rewards. NaN (failed) rewards are
    left out; NaN where fewer than n + 1 are left, so always at n = m.
    """
    counts = count_among(rewards, rewards)
    valid = rewards.isfinite()
    others = counts.valid.double() - 1
    at_or_below, below = counts.at_or_below.double() - 1, counts.below.double()
    all_at_or_below, all_below = torch.ones_like(rewards), torch.ones_like(rewards)
    columns = []
    for drawn in range(rewards.shape[1]):  # the ratio of binomials, one factor for each further draw
        left = (others - drawn).clamp(min=1)
        all_at_or_below = all_at_or_below * (at_or_below - drawn).clamp(min=0) / left
        all_below = all_below * (below - drawn).clamp(min=0) / left
        not_won = torch.where(valid, (all_at_or_below + all_below) / 2, 0.0).sum(1) / valid.sum(1)
        columns.append(torch.where(others[:, 0] > drawn, 1 - not_won, math.nan))
    return torch.stack(columns, dim=1)


def _share_of_equal_rewards(rewards: Tensor) -> float:
    """Share of prompts whose rewards, failed ones aside, are all the same."""
    highest = rewards.nan_to_num(nan=-math.inf).amax(1)
    lowest = rewards.nan_to_num(nan=math.inf).amin(1)
    return (highest == lowest).double().mean().item()
