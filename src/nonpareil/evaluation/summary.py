"""An evaluation in words: one headline sentence, and the rows that the terminal and the report both show."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from nonpareil.console import styled
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.metrics import Evaluation, RewardComparison
from nonpareil.maths.bootstrap import Interval

MISSING = "—"
_ROUNDING = 1e-6
_MOST_AS_ONE = 1.005  # what two digits show as 1.00
_NEAR = 0.002  # of win rates: the frontier's end is an estimate too
_TOO_WIDE = 2.0  # an interval of what is 1 at most
_FEW_DRAWS = 8  # below it the efficiency under ties can be off by more than 8% (docs/yardstick.md)


def number(value: float | None, digits: int = 3, at_most: float = math.inf) -> str:
    """A number at fixed digits, no leading zero (`.78`, `-.05`); a dash for what cannot be computed.

    `at_most` is the largest that could be told: a value there is `>= 31`.
    """
    if value is None or math.isnan(value):
        return MISSING
    if value > at_most - _ROUNDING:
        return f">= {at_most:g}"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{digits}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    if digits and text.lstrip("-").startswith("0."):
        text = text.replace("0.", ".", 1)
    return text


def bracket(interval: Interval | None, digits: int = 3, at_most: float = math.inf) -> str:
    """`[low, high]`, or a dash where there is no interval; `at_most` as in `number`."""
    if interval is None or math.isnan(interval.low):
        return MISSING
    return f"[{number(interval.low, digits, at_most)}, {number(interval.high, digits, at_most)}]"


def headline(evaluation: Evaluation) -> str:
    """The result in one sentence."""
    compared, win, efficiency = (
        evaluation.comparison,
        evaluation.comparison.win_rate,
        evaluation.kl_efficiency,
    )
    rates = f"Win rate {_with_bracket(win, 2)}"
    if compared.zero_one:
        rates = f"{_success(compared)}; {rates[0].lower()}{rates[1:]}"
    parts = [f"{rates} at {number(evaluation.kl.estimate, 2)} nats", _worth(evaluation)]
    sentence = ": ".join(part for part in parts if part)
    if efficiency is None:
        return sentence
    named = ", ".join(filter(None, (number(efficiency.estimate, 2), _doubt(evaluation, efficiency))))
    return f"{sentence}, KL efficiency {named}"


def _doubt(evaluation: Evaluation, efficiency: Interval) -> str:
    """What keeps the KL efficiency from being taken at its word; empty where nothing does."""
    shown = evaluation.comparison.frontier[-1].win_rate
    if efficiency.estimate > _MOST_AS_ONE:
        return "above 1 by noise"
    if evaluation.rewards_tie and evaluation.comparison.win_rate.estimate > shown + _NEAR:
        return "at least: the reference's draws show no win rate this high"
    return "too noisy to tell" if efficiency.high > _TOO_WIDE else ""


def _with_bracket(interval: Interval, digits: int, at_most: float = math.inf) -> str:
    """The estimate, and its interval where there is one."""
    ends = bracket(interval, digits, at_most)
    return f"{number(interval.estimate, digits, at_most)}{'' if ends == MISSING else f' {ends}'}"


def _success(compared: RewardComparison) -> str:
    """The success rate against the reference's, and the reference's pass@N at the largest N that was asked for."""
    policy, reference = compared.policy_mean, compared.reference_mean
    many = [
        f", pass@{each.n} {number(each.reference.estimate, 2)}" for each in compared.pass_at if each.reference
    ]
    return (
        f"Success rate {_with_bracket(policy, 2)} (reference {number(reference.estimate, 2)}"
        f"{many[-1] if many else ''})"
    )


def _worth(evaluation: Evaluation) -> str:
    worth = evaluation.equivalent_n
    if worth is None:
        return ""
    value = _with_bracket(worth, 1, evaluation.largest_n)
    named = f"worth best-of-N, N {value}" if value.startswith(">") else f"worth best-of-{value}"
    return f"{named}{' (worse than the reference)' if worth.high < 1 else ''}"


@dataclass(frozen=True)
class Row:
    """One figure; `interval` None where it cannot be computed."""

    section: str
    label: str
    interval: Interval | None
    note: str = ""
    digits: int = 3
    at_most: float = math.inf
    """The largest value that could be told; one there means as much or more."""

    @property
    def value(self) -> str:
        """The estimate as text."""
        return number(None if self.interval is None else self.interval.estimate, self.digits, self.at_most)

    @property
    def range(self) -> str:
        """The 95% interval as text."""
        return bracket(self.interval, self.digits, self.at_most)


def summary_rows(evaluation: Evaluation) -> list[Row]:
    """Every figure of the evaluation, in the order it is read."""
    rows = [
        *_comparison_rows("Reward", evaluation.comparison),
        *_spent_rows(evaluation),
        *_target_rows(evaluation),
        *_drift_rows(evaluation),
    ]
    if evaluation.unseen is not None:
        rows += _comparison_rows(f"Unseen reward: {evaluation.unseen.reward}", evaluation.unseen)
    return rows


def _comparison_rows(section: str, comparison: RewardComparison) -> Iterator[Row]:
    failed = f"{comparison.policy_failed} failed", f"{comparison.reference_failed} failed"
    outcome = " / ".join(
        number(share.estimate) for share in (comparison.wins, comparison.ties, comparison.losses)
    )
    yield Row(section, "win rate", comparison.win_rate, f"win / tie / loss {outcome}")
    mean = "success rate (pass@1)" if comparison.zero_one else "mean"
    yield Row(section, f"{mean}, policy", comparison.policy_mean, failed[0])
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


def _spent_rows(evaluation: Evaluation) -> Iterator[Row]:
    section = "Distance from the reference"
    error = number(evaluation.kl.standard_error)
    yield Row(section, "KL, nats", evaluation.kl, f"{evaluation.kl_estimator}; standard error {error}")
    yield Row(section, "log-ratio, nats", evaluation.log_ratio, evaluation.log_ratio_estimator)
    ties = ", ties counted" if evaluation.rewards_tie else ""
    largest, worth = evaluation.largest_n, evaluation.equivalent_n
    least = f"least KL for this win rate{ties} / KL; at most 1 but for noise"
    if ties and largest + 1 < _FEW_DRAWS:
        least += f"; rough with {largest + 1} reference draws: take 16 or more"
    if evaluation.kl_efficiency and (doubt := _doubt(evaluation, evaluation.kl_efficiency)):
        least += f"; {doubt}"
    yield Row(section, "KL efficiency", evaluation.kl_efficiency, least)
    same = f"the x with this win rate{ties}; {largest + 1} reference draws show it up to {largest}"
    if worth is None and largest:
        same = "no two rewards of a prompt differ: every x has this win rate"
    elif worth is not None and worth.estimate < 1:
        same += "; below 1 is worse than the reference"
    yield Row(section, "worth best-of-x", evaluation.equivalent_n, same, 2, largest)


def _target_rows(evaluation: Evaluation) -> Iterator[Row]:
    for target in evaluation.targets:
        section, best = "KL to best-of-N, nats", f"best-of-{target.n}"
        limits = f"win rate {number(target.win_rate_ceiling)}, KL {number(target.kl_upper_bound)}"
        low = number(target.backward_kl_bias)
        backward = (
            f"KL(policy ‖ {best}); biased low, by at most {low} for a policy no worse than its reference"
        )
        yield Row(section, f"N = {target.n}, backward", target.backward_kl, backward)
        forward = f"KL({best} ‖ policy); {best} itself: {limits}"
        yield Row(section, f"N = {target.n}, forward", target.forward_kl, forward)


def _drift_rows(evaluation: Evaluation) -> Iterator[Row]:
    policy, reference = evaluation.policy, evaluation.reference
    section = "Drift"
    for side, name in ((policy, "policy"), (reference, "reference")):
        clipped = f"{number(side.clipped_ratio.estimate)} cut at the length limit"
        yield Row(section, f"length, {name}", side.mean_length, "tokens, end token included", 1)
        yield Row(section, f"ended by itself, {name}", side.stopped_ratio, clipped)
    for size in policy.distinct:
        for side, name in ((policy, "policy"), (reference, "reference")):
            yield Row(
                section, f"distinct-{size}, {name}", side.distinct[size], "share of n-grams within a prompt"
            )
    for stratum in evaluation.length_strata:
        share = number(None if stratum.share is None else stratum.share.estimate)
        length = "equally long" if stratum.policy_is == "equal" else stratum.policy_is
        yield Row(section, f"win rate where {length}", stratum.win_rate, f"{share} of pairs")


def summary_table(evaluation: Evaluation) -> Table:
    """The same rows for the terminal."""
    table = Table(title=styled(headline(evaluation), "bold"), title_justify="left", caption_justify="left")
    table.caption = (
        f"{evaluation.num_prompts} prompt{'' if evaluation.num_prompts == 1 else 's'}, "
        f"{evaluation.policy.num_completions} policy and "
        f"{evaluation.reference.num_completions} reference completions each; 95% intervals over prompts"
        f"{f'; both models in {evaluation.dtype}' if evaluation.dtype else ''}."
    )
    if warning := few_prompts(evaluation.num_prompts):
        table.caption += f"\n{warning}"
    table.add_column("")
    table.add_column("estimate", justify="right")
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    section = None
    for row in summary_rows(evaluation):
        if row.section != section:
            section = row.section
            table.add_section()
            table.add_row(styled(section, "bold"), "", "", "")
        table.add_row(row.label, row.value, styled(row.range, ""), styled(row.note, ""))
    return table
