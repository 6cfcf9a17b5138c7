"""Every metric as it is read: its section, label, note and format, and its column where methods are compared.

The one description of a metric. The terminal and the report show the rows, a comparison tabulates their columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nonpareil.evaluation.evaluation import Evaluation, RewardComparison
from nonpareil.evaluation.numbers import bracket, number
from nonpareil.maths.bootstrap import Interval

TARGETS = "KL to best-of-N, nats"
"""The section of the distances to best-of-N, and in a comparison the table of their columns."""
_MOST_AS_ONE = 1.005  # what two digits show as 1.00
_NEAR = 0.002  # of win rates: the frontier's end is an estimate too
_TOO_WIDE = 2.0  # an interval of what is 1 at most
_FEW_DRAWS = 8  # below it the efficiency under ties can be off by more than 8% (docs/yardstick.md)


@dataclass(frozen=True)
class Column:
    """A number of each run that a comparison averages over seeds."""

    name: str
    """In `comparison.json`."""
    label: str | None
    """Over the column of the comparison's table; None: in the file alone."""
    value: float | None
    """Of this evaluation; None or NaN where it cannot be computed."""
    digits: int = 3
    at_most: float = math.inf
    """The largest value that could be told, as in `number`."""
    brief: bool = False
    """Whether the terminal, which has little room, shows it too."""


@dataclass(frozen=True)
class Row:
    """One metric; `interval` None where it cannot be computed."""

    section: str
    label: str
    interval: Interval | None
    note: str = ""
    digits: int = 3
    at_most: float = math.inf
    """The largest value that could be told; one there means as much or more."""
    columns: tuple[Column, ...] = ()

    @property
    def value(self) -> str:
        """The estimate as text."""
        return number(_estimate(self.interval), self.digits, self.at_most)

    @property
    def range(self) -> str:
        """The 95% interval as text."""
        return bracket(self.interval, self.digits, self.at_most)


def summary_rows(evaluation: Evaluation) -> list[Row]:
    """Every metric of the evaluation, in the order it is read."""
    rows = [
        *_comparison_rows("Reward", evaluation.comparison),
        *_reward_rows(evaluation),
        *_spent_rows(evaluation),
        *_target_rows(evaluation),
        *_drift_rows(evaluation),
    ]
    if evaluation.unseen is not None:
        section = f"Unseen reward: {evaluation.unseen.reward}"
        rows += _comparison_rows(section, evaluation.unseen, is_unseen=True)
    return rows


def efficiency_doubt(evaluation: Evaluation, efficiency: Interval) -> str:
    """What keeps the KL efficiency from being taken at its word; empty where nothing does."""
    reachable = evaluation.comparison.frontier[-1].win_rate
    if efficiency.estimate > _MOST_AS_ONE:
        return "above 1 by noise"
    if evaluation.rewards_tie and evaluation.comparison.win_rate.estimate > reachable + _NEAR:
        return "at least: the reference's draws show no win rate this high"
    return "too noisy to tell" if efficiency.high > _TOO_WIDE else ""


def _comparison_rows(section: str, comparison: RewardComparison, is_unseen: bool = False) -> Iterator[Row]:
    if is_unseen:
        of_rate = Column("gold_win_rate", "gold win rate", comparison.win_rate.estimate, brief=True)
        of_mean = Column("gold_reward", None, comparison.policy_mean.estimate)
    else:
        label = "success rate" if comparison.zero_one else "reward"
        of_rate = Column("win_rate", "win rate", comparison.win_rate.estimate, brief=True)
        of_mean = Column("reward", label, comparison.policy_mean.estimate)
    failed = f"{comparison.policy_failed} failed", f"{comparison.reference_failed} failed"
    outcome = " / ".join(
        number(share.estimate) for share in (comparison.wins, comparison.ties, comparison.losses)
    )
    yield Row(section, "win rate", comparison.win_rate, f"win / tie / loss {outcome}", columns=(of_rate,))
    mean = "success rate (pass@1)" if comparison.zero_one else "mean"
    yield Row(section, f"{mean}, policy", comparison.policy_mean, failed[0], columns=(of_mean,))
    yield Row(section, f"{mean}, reference", comparison.reference_mean, failed[1])
    yield Row(section, "difference", comparison.difference)
    for each in comparison.pass_at:
        for name, side in (("policy", each.policy), ("reference", each.reference)):
            if side is not None:
                fewer = comparison.num_prompts - side.num_prompts
                note = f"any of {each.n} succeeds" + (
                    f"; without {fewer} prompts with fewer" if fewer else ""
                )
                yield Row(section, f"pass@{each.n}, {name}", side, note)


def _reward_rows(evaluation: Evaluation) -> Iterator[Row]:
    """Several rewards apart; nothing of a single one, which is the reward."""
    section = "Each reward; the reward above is their weighted sum"
    for one in evaluation.each_reward:
        mean = "success rate" if one.zero_one else "mean"
        column = Column(f"reward/{one.reward}", None, _estimate(one.policy_mean))
        yield Row(section, f"{one.reward}, policy", one.policy_mean, mean, columns=(column,))
        yield Row(section, f"{one.reward}, reference", one.reference_mean, mean)
        yield Row(section, f"{one.reward}, win rate", one.win_rate, "by this reward alone")


def _spent_rows(evaluation: Evaluation) -> Iterator[Row]:
    section, kl, efficiency = "Distance from the reference", evaluation.kl, evaluation.kl_efficiency
    note = f"{evaluation.kl_estimator}; standard error {number(kl.standard_error)}"
    yield Row(section, "KL, nats", kl, note, columns=(Column("kl", "KL, nats", kl.estimate, brief=True),))
    yield Row(section, "log-ratio, nats", evaluation.log_ratio, evaluation.log_ratio_estimator)
    ties = ", ties counted" if evaluation.rewards_tie else ""
    largest, worth = evaluation.largest_n, evaluation.equivalent_n
    least = f"least KL for this win rate{ties} / KL; at most 1 but for noise"
    if ties and largest + 1 < _FEW_DRAWS:
        least += f"; rough with {largest + 1} reference draws: take 16 or more"
    if efficiency and (doubt := efficiency_doubt(evaluation, efficiency)):
        least += f"; {doubt}"
    if efficiency is None and kl.estimate > 0 and not (ties and largest < 2):
        least += "; not known: the noise of the win rate alone would need as much KL"
    column = Column("kl_efficiency", "KL efficiency", _estimate(efficiency), 2, brief=True)
    yield Row(section, "KL efficiency", efficiency, least, columns=(column,))
    yield _rho_squared_row(section, evaluation)
    same = f"the x with this win rate{ties}; {largest + 1} reference draws show it up to {largest}"
    if worth is None and largest:
        same = "no two rewards of a prompt differ: every x has this win rate"
    elif worth is not None and worth.estimate < 1:
        same += "; below 1 is worse than the reference"
    column = Column("equivalent_n", "worth best-of-", _estimate(worth), 2, largest)
    yield Row(section, "worth best-of-x", worth, same, 2, largest, columns=(column,))


def _rho_squared_row(section: str, evaluation: Evaluation) -> Row:
    rho, efficiency = evaluation.rho_squared, evaluation.kl_efficiency
    note = (
        "squared correlation of log-ratio and reward's quantile: the KL efficiency of a small step this way"
    )
    if rho is None:
        note += "; needs both to vary, and three reference rewards per prompt where rewards tie"
    elif rho.high < 0:
        note += "; negative: the policy turns from the reward"
    elif rho.estimate > _MOST_AS_ONE:
        note += "; above 1 by noise"
    elif rho.high > _TOO_WIDE or rho.low < -_TOO_WIDE:
        note += "; too noisy to tell"
    elif efficiency and rho.low > efficiency.high:
        note += "; above the KL efficiency: less strength would waste less"
    column = Column("rho_squared", "rho²", _estimate(rho), 2)
    return Row(section, "direction, rho²", rho, note, columns=(column,))


def _target_rows(evaluation: Evaluation) -> Iterator[Row]:
    for target in evaluation.targets:
        n, best = target.n, f"best-of-{target.n}"
        limits = f"win rate {number(target.win_rate_ceiling)}, KL {number(target.kl_upper_bound)}"
        low = number(target.backward_kl_bias)
        backward = (
            f"KL(policy ‖ {best}); biased low, by at most {low} for a policy no worse than its reference"
        )
        forward = f"KL({best} ‖ policy); {best} itself: {limits}"
        for name, kl, note in (
            ("backward", target.backward_kl, backward),
            ("forward", target.forward_kl, forward),
        ):
            column = Column(f"{name}_kl_{n}", f"{name}, N={n}", _estimate(kl), 2)
            yield Row(TARGETS, f"N = {n}, {name}", kl, note, columns=(column,))


def _drift_rows(evaluation: Evaluation) -> Iterator[Row]:
    policy, reference = evaluation.policy, evaluation.reference
    section, tokens = "Drift", "tokens, end token included"
    before = reference.mean_length.estimate
    drift = policy.mean_length.estimate - before
    change = (
        Column("length_drift", "length, tokens", drift, 1),
        Column("length_drift_percent", "length, %", 100 * drift / before if before else None, 1, brief=True),
    )
    for side, name, columns in ((policy, "policy", change), (reference, "reference", ())):
        clipped = f"{number(side.clipped_ratio.estimate)} cut at the length limit"
        yield Row(section, f"length, {name}", side.mean_length, tokens, 1, columns=columns)
        yield Row(section, f"ended by itself, {name}", side.stopped_ratio, clipped)
    for size in policy.distinct:
        for side, name in ((policy, "policy"), (reference, "reference")):
            yield Row(
                section, f"distinct-{size}, {name}", side.distinct[size], "share of n-grams within a prompt"
            )
    for stratum in evaluation.length_strata:
        share = number(_estimate(stratum.share))
        length = "equally long" if stratum.policy_is == "equal" else stratum.policy_is
        yield Row(section, f"win rate where {length}", stratum.win_rate, f"{share} of pairs")


def _estimate(interval: Interval | None) -> float | None:
    return None if interval is None else interval.estimate
