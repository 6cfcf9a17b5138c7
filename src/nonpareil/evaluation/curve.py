"""What best-of-N is worth for N = 1..m, from groups drawn once: no more drawing, no subsampling noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation.by_source import SourceCurve, curve_by_source, curve_headings, told_apart
from nonpareil.evaluation.groups import numbers_of
from nonpareil.evaluation.intervals import Bootstrap, rising
from nonpareil.evaluation.worth import best_of_n_points, is_zero_one
from nonpareil.files import jsonable
from nonpareil.maths.best_of_n import win_rate
from nonpareil.maths.bootstrap import Interval, Scale
from nonpareil.maths.counts import count_among
from nonpareil.maths.order_statistics import best_of_n_curve
from nonpareil.maths.tie_classes import distinct_counts, without_ties
from nonpareil.records import Group, GroupNumbers, refuse_repeated

ENOUGH_GAIN = 0.9
_MOST = 0.9
_REWARDS_AT_ONCE = 2**16


@dataclass(frozen=True)
class CurvePoint:
    """Best-of-n of the policy that drew the groups."""

    n: int
    reward: Interval
    """Expected reward of the best of n; unbiased. Of rewards 0 and 1 it is pass@n."""
    win_rate: Interval | None
    """Against one further draw, ties one half; unbiased. None at the last n where no further draw is left."""
    win_rate_ceiling: float
    """The same from the groups at the last n too (there biased, O(1/m)); n / (n+1) where no rewards tie."""
    kl_upper_bound: float
    """KL to one draw that it spends, nats, ties counted; log n - (n-1)/n where no rewards tie, and that at most."""
    tokens_per_prompt: float
    """Mean tokens drawn for one answer; the completions drawn are n."""


@dataclass(frozen=True)
class CurveReport:
    """Best-of-n for n = 1..N, the same prompts at every n, and what the groups are made of."""

    points: tuple[CurvePoint, ...]
    max_n: int
    """The N asked for. Where rewards failed the curve may end before it."""
    num_prompts: int
    num_prompts_used: int
    """Prompts that the points rest on: those with as many rewards that did not fail as the last point needs."""
    num_completions: int
    """A prompt (m)."""
    failed_rewards: int
    frac_reward_zero_std: float
    """Share of scored prompts whose rewards are all equal: there is nothing to choose between."""
    mean_unique_completions: float
    """Different completions per prompt, by token ids."""
    mean_length: float
    """Tokens per completion, the end token included."""
    zero_one: bool
    """Whether every reward is 0 or 1: a success rate."""
    rewards_tie: bool
    """Whether any two rewards of a prompt are equal."""
    by_source: tuple[SourceCurve, ...] = ()
    """Of a mixture each dataset apart, over the prompts that the points rest on; empty of other prompts."""

    def still_rising(self) -> bool:
        """Whether the last doubling of n brings more than 10% of the gain: then no n drawn is known to be enough.

        A reward that grows by the same step with each doubling of n, as log n does, is still rising up to n = 1024.
        """
        half_way = max(1, len(self.points) // 2)
        first, half, last = (self.points[n - 1].reward.estimate for n in (1, half_way, len(self.points)))
        return half - first < ENOUGH_GAIN * (last - first)

    def recommended_n(self) -> int:
        """The smallest n with 90% of what the last n gains over one draw, where the curve has flattened by then.

        The last n where it is still rising; 1 if nothing is gained.
        """
        rewards = [point.reward.estimate for point in self.points]
        if rewards[-1] <= rewards[0]:
            return 1
        if self.still_rising():
            return self.points[-1].n
        enough = rewards[0] + ENOUGH_GAIN * (rewards[-1] - rewards[0])
        return next(point.n for point in self.points if point.reward.estimate >= enough)

    def recommendation(self) -> str:
        """`recommended_n` in one or two sentences."""
        n, last = self.recommended_n(), self.points[-1]
        gain = last.reward.estimate - self.points[0].reward.estimate
        if last.n == 1:
            return "One draw is no choice: draw more completions per prompt."
        if n == 1:
            return f"Best-of-{last.n} gains nothing over one draw: the rewards do not tell completions apart."
        if self.still_rising():
            more = "raise max_n" if last.n == self.max_n < self.num_completions else "draw more"
            half = self.points[last.n // 2 - 1]
            share = (last.reward.estimate - half.reward.estimate) / gain
            return (
                f"Still rising at N = {last.n}: {more}. "
                f"From N = {half.n} to {last.n} comes {share:.0%} of the gain of {gain:.3g}."
            )
        return (
            f"N = {n} is the smallest with {ENOUGH_GAIN:.0%} of the gain of N = {last.n} "
            f"({self.reward_name} {self.points[n - 1].reward.estimate:.3g}, gain {gain:.3g} at N = {last.n})."
        )

    @property
    def reward_name(self) -> str:
        """What the rewards of the points are called."""
        return "pass@N" if self.zero_one else "reward"

    def source_headings(self) -> tuple[str, ...]:
        """Over the columns of the sources' table."""
        with_win = [point.n for point in self.points if point.win_rate is not None]
        return curve_headings(self.reward_name, self.points[-1].n, with_win[-1] if with_win else None)

    def notes(self) -> tuple[str, ...]:
        """What a reader of the points has to know, a sentence each."""
        last, said = self.points[-1], []
        if self.num_prompts_used < self.num_prompts:
            said.append(
                f"{self.num_prompts_used} of {self.num_prompts} prompts take part, the same at every N; the others "
                f"have too few rewards that did not fail."
            )
        if last.n < self.max_n:
            more = f"too few prompts have {last.n + 1} rewards that did not fail"
            said.append(f"N ends at {last.n}, not {self.max_n}: {more}.")
        if self.zero_one:
            said.append(
                "Rewards are 0 or 1: pass@N is the chance that one of N draws succeeds, pass@1 the success rate."
            )
        measured = [(point.n, point.win_rate.estimate) for point in self.points[1:] if point.win_rate]
        if self.rewards_tie and measured:
            n, rate = measured[-1]
            rates = f"{rate:.3f}", f"{win_rate(n):.3f}"
            if rates[0] != rates[1]:
                said.append(f"Rewards tie: best-of-{n} wins {rates[0]} of the time; without ties {rates[1]}.")
        if last.win_rate is None:
            said.append(f"No win rate at N = {last.n}: no further draw is left to compare its best with.")
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what cannot be computed is null."""
        return {
            **jsonable(self),
            "recommended_n": self.recommended_n(),
            "still_rising": self.still_rising(),
            "recommendation": self.recommendation(),
            "notes": list(self.notes()),
        }


def best_of_n_report(
    groups: Sequence[Group] | GroupNumbers, max_n: int | None = None, *, seed: int = 0
) -> CurveReport:
    """The best-of-n curve of scored groups, for n = 1..max_n (all m completions if None).

    Intervals are bootstrapped over prompts. Every point rests on the same prompts. Where rewards failed that is a
    choice between long curves and many prompts: the curve ends at the n with the most rewards used (n times the
    prompts that have n), at least half of the scored prompts among them.

    Raises:
        DataError: no groups, a prompt id twice, ragged or unscored groups, an infinite reward, or no reward that
            did not fail.
        ConfigError: max_n outside 1..m.
    """
    numbers = groups if isinstance(groups, GroupNumbers) else numbers_of(groups)
    size = numbers.rewards.shape[1]
    refuse_repeated(numbers.prompt_ids, "groups")
    if max_n is not None and not 1 <= max_n <= size:
        raise ConfigError(f"max_n must lie in 1..{size} (the completions per prompt), got {max_n}.")
    order = sorted(range(len(numbers)), key=numbers.prompt_ids.__getitem__)
    rewards = torch.from_numpy(numbers.rewards[order])
    mean_length = torch.from_numpy(numbers.lengths[order]).mean().item()
    valid = (~rewards.isnan()).sum(1)
    if not valid.any():
        raise DataError(f"All {rewards.numel()} rewards failed: there is nothing to select by.")
    reach, needed = reach_of(valid, max_n or size)
    takes_part, zero_one = valid >= needed, is_zero_one(rewards, rewards)
    used = rewards[takes_part]
    reward_of_best = best_of_n_curve(rewards, reach)[takes_part]  # of all, so that an infinite one is refused
    bootstrap = Bootstrap(seed)
    wins = win_rate_against_one(used)[:, :reach]
    return CurveReport(
        points=_points(used, reward_of_best, wins, mean_length, bootstrap, "share" if zero_one else "real"),
        max_n=max_n or size,
        num_prompts=len(numbers),
        num_prompts_used=len(used),
        num_completions=size,
        failed_rewards=int(rewards.isnan().sum()),
        frac_reward_zero_std=_share_of_equal_rewards(rewards[valid > 0]),
        mean_unique_completions=int(numbers.num_unique.sum()) / len(numbers),
        mean_length=mean_length,
        zero_one=zero_one,
        rewards_tie=not bool(without_ties(used).all()),
        by_source=curve_by_source(
            _sources_of_used(numbers, order, takes_part), reward_of_best, wins, zero_one, bootstrap
        ),
    )


def _sources_of_used(numbers: GroupNumbers, order: Sequence[int], takes_part: Tensor) -> list[str] | None:
    if not numbers.sources or (names := told_apart([numbers.sources[row] for row in order])) is None:
        return None
    return [name for name, used in zip(names, takes_part.tolist(), strict=True) if used]


def reach_of(valid: Int[Tensor, " b"], max_n: int) -> tuple[int, int]:
    """The last n of the curve, and how many rewards a prompt needs to take part."""
    having = [int((valid >= n).sum()) for n in range(int(valid.max()) + 2)]
    enough = [n for n in range(1, max_n + 1) if n < len(having) and 2 * having[n] >= having[1]]
    reach = max(enough, key=lambda n: (n * having[n], n))
    # One reward more gives the last n a win rate too; not for the price of many prompts.
    return reach, reach + 1 if having[reach + 1] >= _MOST * having[reach] else reach


def _points(
    rewards: Float[Tensor, "b m"],
    reward_of_best: Float[Tensor, "b max_n"],
    wins: Float[Tensor, "b max_n"],
    mean_length: float,
    bootstrap: Bootstrap,
    scale: Scale,
) -> tuple[CurvePoint, ...]:
    reach = reward_of_best.shape[1]
    means = [bootstrap.mean(best, scale) for best in reward_of_best.T]
    return tuple(
        CurvePoint(
            n=own.n,
            reward=reward,
            win_rate=None if win.isnan().any() else bootstrap.mean(win, "share"),
            win_rate_ceiling=own.win_rate,
            kl_upper_bound=own.kl,
            tokens_per_prompt=own.n * mean_length,
        )
        for own, reward, win in zip(
            best_of_n_points(rewards, range(1, reach + 1)),
            rising(means) if scale == "share" else means,
            wins.T,
            strict=True,
        )
    )


def win_rate_against_one(rewards: Float[Tensor, "b m"]) -> Float[Tensor, "b m"]:
    """Chance that the best of n draws beats one further draw, ties one half, at n = 1..m of each prompt.

    Unbiased: the mean over every draw and every n-subset of the others, in closed form. A subset's best is
    at most r with chance C(others at or below r, n) / C(others, n), and below r likewise; the win rate is
    one less the mean of the two. Without ties it is n / (n+1) whatever the rewards. NaN (failed) rewards are
    left out; NaN where fewer than n + 1 are left, so always at n = m.
    """
    at_once = max(1, _REWARDS_AT_ONCE // rewards.shape[1])
    return torch.cat([_win_rate_against_one(part) for part in rewards.split(at_once)])


def _win_rate_against_one(rewards: Tensor) -> Tensor:
    counts, valid = count_among(rewards, rewards), rewards.isfinite()
    (below, size, others), place = distinct_counts(
        counts.below, counts.at_or_below - counts.below, counts.valid - 1
    )
    place = place.masked_fill(~valid, len(below)).flatten()  # behind the others, where a zero stands
    columns = []
    for drawn, not_won in enumerate(_not_won(below, size, others, rewards.shape[1])):
        of_draw = torch.nn.functional.pad(not_won, (0, 1)).index_select(0, place).view_as(rewards)
        win = 1 - of_draw.sum(1) / valid.sum(1)
        columns.append(torch.where(counts.valid[:, 0] > drawn + 1, win, math.nan))
    return torch.stack(columns, dim=1)


def _not_won(below: Tensor, size: Tensor, others: Tensor, most: int) -> Iterator[Tensor]:
    """Chance that the best of n = 1..most others does not beat a draw with these counts, ties one half."""
    at_or_below = below + size - 1
    all_at_or_below, all_below = torch.ones_like(below), torch.ones_like(below)
    for drawn in range(most):  # the ratio of binomials, one factor for each further draw
        left = (others - drawn).clamp(min=1)
        all_at_or_below = all_at_or_below * (at_or_below - drawn).clamp(min=0) / left
        all_below = all_below * (below - drawn).clamp(min=0) / left
        yield (all_at_or_below + all_below) / 2


def _share_of_equal_rewards(rewards: Tensor) -> float:
    """Share of prompts whose rewards, failed ones aside, are all the same."""
    highest = rewards.nan_to_num(nan=-math.inf).amax(1)
    lowest = rewards.nan_to_num(nan=math.inf).amin(1)
    return (highest == lowest).double().mean().item()
