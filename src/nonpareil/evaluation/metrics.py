"""The yardstick: what a policy gained over its reference, what it spent, and how near best-of-N it came."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation.by_prompt import metrics_by_prompt
from nonpareil.evaluation.by_source import metrics_by_source
from nonpareil.evaluation.evaluation import (
    Completions,
    Evaluation,
    LengthStratum,
    OneOfSeveral,
    RewardComparison,
    Target,
)
from nonpareil.evaluation.groups import (
    MatchedGroups,
    distinct_ngrams,
    group_size,
    lengths_of,
    match_groups,
    rewards_of,
    stopped_of,
)
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.rho_squared import rho_squared_of
from nonpareil.evaluation.target import backward_kl, forward_kl
from nonpareil.evaluation.worth import best_of_n_points, frontier_points, is_zero_one, pass_at, worth_of
from nonpareil.maths.bootstrap import Scale
from nonpareil.maths.win_rate import pairwise
from nonpareil.records import Group

KL_ESTIMATOR = "exact per token along sampled completions"
_PAIRS_AT_ONCE = 2**18
LOG_RATIO_ESTIMATOR = "k1: mean sampled log-ratio, never clamped"


def evaluate_groups(
    policy_groups: Sequence[Group],
    reference_groups: Sequence[Group],
    *,
    policy_kl: Tensor,
    policy_log_ratio: Tensor,
    reference_log_ratio: Tensor | None = None,
    n: Sequence[int] = (2, 4, 8, 16),
    unseen_reward: str | None = None,
    reward_names: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """Measure a policy against its reference on groups of the same prompts, drawn and scored.

    Args:
        policy_groups: b groups of k completions.
        reference_groups: b groups of M completions, matched by prompt id, in any order.
        policy_kl: [b, k], the exact per-token KL(policy || reference) summed along each policy completion.
        policy_log_ratio: [b, k], log pi - log pi_ref summed over each policy completion, nats.
        reference_log_ratio: [b, M], the same on the reference's completions; forward KL and rho squared need it.
        n: the best-of-n targets to measure the distance to.
        unseen_reward: a reward both sides hold under `rewards_by_name`, compared like the main one.
        reward_names: those that add up to the main one, under `rewards_by_name`; several are also measured apart.
        seed: of the bootstrap.

    Raises:
        DataError: prompt ids that do not match, ragged or unscored groups, a tensor whose shape is not the
            groups' or that holds a number that is not finite, or no prompt scored on both sides.
        ConfigError: an n below 1.
    """
    matched = match_groups(policy_groups, reference_groups)
    kl = _rows_in_order("policy_kl", policy_kl, matched.policy, matched.policy_rows)
    log_ratio = _rows_in_order("policy_log_ratio", policy_log_ratio, matched.policy, matched.policy_rows)
    on_reference = None
    if reference_log_ratio is not None:
        rows = matched.reference, matched.reference_rows
        on_reference = _rows_in_order("reference_log_ratio", reference_log_ratio, *rows)
    bootstrap, rewards = Bootstrap(seed), (rewards_of(matched.policy), rewards_of(matched.reference))
    comparison = _compare(matched, None, bootstrap, n)
    return Evaluation(
        num_prompts=len(matched.policy),
        comparison=comparison,
        kl=bootstrap.mean(kl.mean(1), "positive"),
        kl_estimator=KL_ESTIMATOR,
        log_ratio=bootstrap.mean(log_ratio.mean(1)),
        log_ratio_estimator=LOG_RATIO_ESTIMATOR,
        **vars(worth_of(*rewards, kl.mean(1), bootstrap)),
        rho_squared=None if on_reference is None else rho_squared_of(on_reference, rewards[1], bootstrap),
        targets=_targets(rewards, kl, on_reference, n, bootstrap),
        policy=_completions(matched.policy, matched, bootstrap),
        reference=_completions(matched.reference, matched, bootstrap),
        length_strata=_length_strata(matched, bootstrap),
        unseen=None if unseen_reward is None else _compare(matched, unseen_reward, bootstrap, n),
        by_prompt=metrics_by_prompt(matched, kl, unseen_reward),
        by_source=metrics_by_source(matched, kl.mean(1), comparison.zero_one, bootstrap),
        each_reward=tuple(_apart(matched, name, bootstrap) for name in reward_names)
        if len(reward_names) > 1
        else (),
    )


def _rows_in_order(name: str, values: Tensor, groups: list[Group], rows: list[int]) -> Tensor:
    """The caller's [b, m] in the order of the matched groups, float64; refused if it does not fit them."""
    expected = (len(groups), group_size(groups))
    if tuple(values.shape) != expected:
        raise DataError(f"{name} must be {list(expected)} (prompts, completions), got {list(values.shape)}.")
    values = values.detach().to("cpu", torch.float64)[rows]
    bad = ~values.isfinite()
    if bad.any():
        row, place = bad.nonzero()[0].tolist()
        raise DataError(
            f"{name} holds {int(bad.sum())} numbers that are not finite, of {bad.numel()}; the first is "
            f"{values[row, place].item()} of prompt {groups[row].prompt_id}, completion {place} (counted from 0): "
            "one of the two models gives no numbers there, or rules out what the other wrote; compare them in "
            "float32 (kl_dtype), or evaluate an earlier checkpoint"
        )
    return values


def _compare(
    matched: MatchedGroups, name: str | None, bootstrap: Bootstrap, ns: Sequence[int]
) -> RewardComparison:
    """One reward on both sides."""
    policy, reference = rewards_of(matched.policy, name), rewards_of(matched.reference, name)
    label = name or "rewards"
    scored = policy.isfinite().any(1) & reference.isfinite().any(1)
    if not scored.any():
        raise DataError(f"No prompt has a reward {label!r} that did not fail on both sides.")
    outcome, zero_one = pairwise(policy, reference), is_zero_one(policy, reference)
    scale: Scale = "share" if zero_one else "real"
    means = [torch.where(scored, x.nanmean(1), math.nan) for x in (policy, reference)]
    return RewardComparison(
        reward=label,
        num_prompts=int(scored.sum()),
        policy_mean=bootstrap.mean(means[0], scale),
        reference_mean=bootstrap.mean(means[1], scale),
        difference=bootstrap.mean(means[0] - means[1]),
        win_rate=bootstrap.mean(outcome.win_rate, "share"),
        wins=bootstrap.mean(outcome.win, "share"),
        ties=bootstrap.mean(outcome.tie, "share"),
        losses=bootstrap.mean(outcome.loss, "share"),
        policy_failed=int(policy.isnan().sum()),
        reference_failed=int(reference.isnan().sum()),
        zero_one=zero_one,
        frontier=frontier_points(reference[scored]),
        pass_at=pass_at(policy[scored], reference[scored], ns, bootstrap) if zero_one else (),
    )


def _apart(matched: MatchedGroups, name: str, bootstrap: Bootstrap) -> OneOfSeveral:
    """One of several rewards on both sides."""
    sides = rewards_of(matched.policy, name), rewards_of(matched.reference, name)
    scored = sides[0].isfinite().any(1) & sides[1].isfinite().any(1)
    zero_one = is_zero_one(*sides)
    ours, theirs = (torch.where(scored, side.nanmean(1), math.nan) for side in sides)
    scale: Scale = "share" if zero_one else "real"
    return OneOfSeveral(
        reward=name,
        policy_mean=bootstrap.mean_or_none(ours, scale),
        reference_mean=bootstrap.mean_or_none(theirs, scale),
        win_rate=bootstrap.mean_or_none(pairwise(*sides).win_rate, "share"),
        zero_one=zero_one,
    )


def _targets(
    rewards: tuple[Tensor, Tensor],
    kl: Tensor,
    log_ratio: Tensor | None,
    ns: Sequence[int],
    bootstrap: Bootstrap,
) -> tuple[Target, ...]:
    """`rewards`: the policy's and the reference's; `log_ratio` is of the reference's completions."""
    if any(n < 1 for n in ns):
        raise ConfigError(f"n must be at least 1, got {list(ns)}.")
    policy, reference = rewards
    targets = []
    for n, best in zip(ns, best_of_n_points(reference, ns), strict=True):
        forward = None
        if log_ratio is not None and n <= reference.shape[1]:
            forward = bootstrap.mean_or_none(forward_kl(log_ratio, reference, n))
        backward = backward_kl(kl, policy, reference, n)
        bias = ((n - 1) / (reference.isfinite().sum(1) + 1))[backward.isfinite()].mean().item()
        targets.append(Target(n, bootstrap.mean(backward), bias, forward, best.win_rate, best.kl))
    return tuple(targets)


def _completions(groups: list[Group], matched: MatchedGroups, bootstrap: Bootstrap) -> Completions:
    in_common = min(group_size(matched.policy), group_size(matched.reference))
    stopped = stopped_of(groups).mean(1)
    return Completions(
        num_completions=group_size(groups),
        mean_length=bootstrap.mean(lengths_of(groups).mean(1)),
        stopped_ratio=bootstrap.mean(stopped, "share"),
        clipped_ratio=bootstrap.mean(1 - stopped, "share"),
        distinct={
            str(size): bootstrap.mean_or_none(distinct_ngrams(groups, size, in_common), "share")
            for size in (1, 2, 3)
        },
    )


def _length_strata(matched: MatchedGroups, bootstrap: Bootstrap) -> tuple[LengthStratum, ...]:
    """The win rate apart for pairs where the policy's completion is longer, equal, shorter.

    Pairs won over pairs, both summed over prompts: a prompt without such a pair adds nothing.
    """
    groups = matched.policy, matched.reference
    sides = [numbers(side) for numbers in (rewards_of, lengths_of) for side in groups]
    at_once = max(1, _PAIRS_AT_ONCE // (sides[0].shape[1] * sides[1].shape[1]))
    parts = zip(*(side.split(at_once) for side in sides), strict=True)
    scored, pairs, wins = (torch.cat(each) for each in zip(*(_pairs(*part) for part in parts), strict=True))
    return tuple(
        LengthStratum(label, bootstrap.ratio(own, scored), bootstrap.ratio(won, own))
        for label, own, won in zip(("longer", "equal", "shorter"), pairs.T, wins.T, strict=True)
    )


def _pairs(
    policy: Tensor, reference: Tensor, policy_length: Tensor, reference_length: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scored pairs [b]; those where the policy's is longer, equal, shorter, and how many it won of them [b, 3]."""
    policy, reference = policy[:, :, None], reference[:, None, :]
    scored = policy.isfinite() & reference.isfinite()
    won = (policy > reference).double() + (policy == reference).double() / 2
    longer = policy_length[:, :, None] - reference_length[:, None, :]
    strata = [where & scored for where in (longer > 0, longer == 0, longer < 0)]
    pairs = [where.double().sum((1, 2)) for where in strata]
    wins = [torch.where(where, won, 0.0).sum((1, 2)) for where in strata]
    return scored.double().sum((1, 2)), torch.stack(pairs, 1), torch.stack(wins, 1)
