"""What a win rate is worth against reference groups whose rewards may tie: N, efficiency, frontier, pass@N."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.evaluation.intervals import Bootstrap, rising
from nonpareil.maths.bootstrap import Interval
from nonpareil.maths.group_best_of_n import group_equivalent_n, group_kl, group_win_rate, largest_n, n_nodes
from nonpareil.maths.group_frontier import TiltTable, group_least_kl, highest_win_rate, tilt_table
from nonpareil.maths.order_statistics import best_of_n_curve
from nonpareil.maths.tie_classes import without_ties
from nonpareil.maths.win_rate import pairwise

MARKED_N = (2, 4, 8, 16, 32, 64)
_FRONTIER_POINTS = 64  # denser near 0, where the win rate rises as the root of the KL
_NO_KL = 1e-6
_ROUNDING = 1e-9  # of win rates
_LEAST_N_UNDER_TIES = 2  # two draws per prompt: the least KL of best-of-2 comes out near twice too high


@dataclass(frozen=True)
class PlanePoint:
    """A point on the plane of KL (nats) and win rate against the reference, ties one half."""

    kl: float
    win_rate: float


@dataclass(frozen=True)
class BestOfNPoint:
    """Best-of-n of the reference itself, by its groups."""

    n: int
    kl: float
    """KL(best-of-n || reference) in nats, ties sharing their class's mass; log n - (n-1)/n where none tie."""
    win_rate: float
    """n / (n+1) where no rewards tie."""


@dataclass(frozen=True)
class Worth:
    """What a policy's win rate is worth, by the reference groups of the prompts where both sides are scored."""

    equivalent_n: Interval | None
    """The real N whose best-of-N of the same groups, ties counted, has this win rate. At most `largest_n`, where it
    means as much or more; None where every N has this win rate, as no two rewards of a prompt differ, or with one
    reference reward per prompt, which shows no N."""
    largest_n: int
    """The largest N that the groups can show, M - 1."""
    kl_efficiency: Interval | None
    """Least KL that any policy needs for this win rate, ties counted / KL spent; None where no KL was spent, or too
    little to tell (`shows_efficiency`), or where rewards tie and no prompt has more than two of the reference,
    which do not show how they tie."""
    best_of_n: tuple[BestOfNPoint, ...]
    rewards_tie: bool
    """Whether any two rewards of a reference group are equal."""


def worth_of(
    policy_rewards: Float[Tensor, "b k"],
    reference_rewards: Float[Tensor, "b m"],
    kl: Float[Tensor, " b"],
    bootstrap: Bootstrap,
) -> Worth:
    """The worth of a policy with these rewards at each prompt's KL, nats; prompts without a pair are left out."""
    win = _win_metrics(policy_rewards, reference_rewards)
    scored = reference_rewards[~win[0].isnan()]
    largest = largest_n(scored)
    tie = not bool(without_ties(scored).all())
    shown = [n for n in MARKED_N if n <= largest or not tie]
    return Worth(
        equivalent_n=_equivalent_n(win, reference_rewards, largest, bootstrap),
        largest_n=largest,
        kl_efficiency=_kl_efficiency(win, kl, reference_rewards, bootstrap)
        if shows_least_kl(scored)
        else None,
        best_of_n=best_of_n_points(scored, shown),
        rewards_tie=tie,
    )


def shows_least_kl(reference_rewards: Float[Tensor, "b m"]) -> bool:
    """Whether groups show the least KL for a win rate: not where rewards tie and no prompt has more than two."""
    return largest_n(reference_rewards) >= _LEAST_N_UNDER_TIES or bool(without_ties(reference_rewards).all())


def shows_efficiency(kl: float, win_rate: Interval, reference_rewards: Float[Tensor, "b m"]) -> bool:
    """Whether a KL, nats, is large enough for an efficiency: more than the noise of its win rate would need.

    The reference against itself wins .5 give or take the standard error. Where the least KL of a win rate that is
    one standard error above .5 is no less than what was spent, the efficiency is that noise over nearly nothing: it
    may be 1,000, and tells nothing of the policy. The estimate itself has no part in this, so that none is left out
    for being high.
    """
    if math.isnan(win_rate.standard_error):  # one prompt
        return kl > 0
    columns = tilt_table(reference_rewards).columns()
    table = TiltTable.of(columns[~columns.isnan().any(1)].mean(0, keepdim=True))
    by_noise = group_least_kl(torch.tensor([0.5 + win_rate.standard_error], dtype=torch.float64), table)
    return kl > float(by_noise)


def best_of_n_points(rewards: Float[Tensor, "b m"], n: Sequence[int]) -> tuple[BestOfNPoint, ...]:
    """Where best-of-n of the groups lies, ties counted; means over the prompts with a reward."""
    if not n:
        return ()
    at = torch.tensor(n, dtype=torch.float64)
    kl, win_rate = group_kl(rewards, at).nanmean(0), group_win_rate(rewards, at).nanmean(0)
    return tuple(BestOfNPoint(*point) for point in zip(n, kl.tolist(), win_rate.tolist(), strict=True))


def frontier_points(reference_rewards: Float[Tensor, "b m"]) -> tuple[PlanePoint, ...]:
    """The highest mean win rate of any policy, by KL, over these prompts; each has a reward."""
    table = TiltTable.of(tilt_table(reference_rewards).columns().mean(0, keepdim=True))
    end = table.kl.amax().clamp(min=0)
    if end < _NO_KL:  # all rewards tie: nothing can be gained
        return (PlanePoint(0.0, 0.5),)
    kl = torch.linspace(0, end.sqrt().item(), _FRONTIER_POINTS, dtype=torch.float64).square()
    win_rate = highest_win_rate(kl, table)
    return tuple(PlanePoint(*point) for point in zip(kl.tolist(), win_rate.tolist(), strict=True))


def _win_metrics(policy: Tensor, reference: Tensor) -> list[Tensor]:
    """Each prompt's win rate, NaN without a pair; and where it is at its end at every prompt, two metrics more.

    A policy that never falls short of the best reference reward (with 0/1 rewards: that always succeeds) has no win
    rate that could vary, and no resample would show that one failure was only not seen. Then the share at that
    end, 1 throughout, and the win rate of a policy at the other end stand beside it (`_resampled_win_rate`).
    """
    win = pairwise(policy, reference).win_rate
    scored, valid = ~win.isnan(), (~policy.isnan()).sum(1)
    best, worst = (
        (sign * reference).nan_to_num(nan=-torch.inf).amax(1, keepdim=True) * sign for sign in (1, -1)
    )
    at_best, at_worst = (policy >= best).sum(1) / valid, (policy <= worst).sum(1) / valid
    for share, other in ((at_best, worst), (at_worst, best)):
        if (share[scored] == 1).all():
            return [win, share, pairwise(other, reference).win_rate]
    return [win]


def _resampled_win_rate(means: Tensor, num_metrics: int) -> Tensor:
    """The win rate of resamples, of which the share away from the end is at the other one."""
    if num_metrics == 1:
        return means[:, 0]
    return means[:, 0] + (1 - means[:, 1]) * (means[:, 2] - means[:, 0])


def _equivalent_n(win: list[Tensor], rewards: Tensor, largest: int, bootstrap: Bootstrap) -> Interval | None:
    if largest < 1:
        return None
    nodes, first = n_nodes(largest), len(win)
    table = group_win_rate(rewards, nodes)
    if not any((x - 0.5).nan_to_num().abs().max() > _ROUNDING for x in (win[0], table)):
        return None

    def worth(means: Tensor) -> Tensor:
        return group_equivalent_n(_resampled_win_rate(means, first), means[:, first:], nodes)

    metrics = [*win, table]
    interval = bootstrap.of_means(metrics, worth, scale="positive", shares=range(1, first)[:1])
    return replace(interval, high=min(interval.high, float(largest)))


def _kl_efficiency(win: list[Tensor], kl: Tensor, reference: Tensor, bootstrap: Bootstrap) -> Interval | None:
    """Resampled together; a win rate below one half buys nothing."""
    first, shares = len(win), range(1, len(win))[:1]
    rate = bootstrap.of_means(win, lambda means: _resampled_win_rate(means, first), shares=shares)
    metrics = [*win, kl, tilt_table(reference).columns()]
    kept = ~torch.column_stack(metrics).isnan().any(1)
    if not shows_efficiency(float(kl[kept].mean()), rate, reference[kept]):
        return None

    def efficiency(means: Tensor) -> Tensor:
        least = group_least_kl(_resampled_win_rate(means, first), TiltTable.of(means[:, first + 1 :]))
        return least / means[:, first]

    return bootstrap.of_means(metrics, efficiency, scale="positive", shares=shares)


@dataclass(frozen=True)
class PassAtN:
    """The chance that any of n draws succeeds, under rewards 0 and 1; unbiased."""

    n: int
    policy: Interval | None
    """None with fewer than n rewards at every prompt."""
    reference: Interval | None


def is_zero_one(policy: Float[Tensor, "b k"], reference: Float[Tensor, "b m"]) -> bool:
    """Whether every reward of both sides that did not fail is 0 or 1: a success rate."""
    return all(bool(((side == 0) | (side == 1) | side.isnan()).all()) for side in (policy, reference))


def pass_at(
    policy: Float[Tensor, "b k"], reference: Float[Tensor, "b m"], n: Sequence[int], bootstrap: Bootstrap
) -> tuple[PassAtN, ...]:
    """pass@n of both sides at each n, ascending, over the prompts with n rewards."""

    counts = sorted(set(n))

    def of(rewards: Tensor) -> dict[int, Interval]:
        possible = [count for count in counts if count <= rewards.shape[1]]
        chances = {count: best_of_n_curve(rewards, count)[:, -1] for count in possible}
        found = {count: bootstrap.mean(x, "share") for count, x in chances.items() if not x.isnan().all()}
        return dict(zip(found, rising(list(found.values())), strict=True))

    sides = of(policy), of(reference)
    return tuple(PassAtN(count, sides[0].get(count), sides[1].get(count)) for count in counts)
