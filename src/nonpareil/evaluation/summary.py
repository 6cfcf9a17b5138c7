"""An evaluation in words: one headline sentence, and the terminal's table."""

import math

from rich.table import Table

from nonpareil.console import styled
from nonpareil.evaluation.evaluation import Evaluation, RewardComparison
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.numbers import MISSING, bracket, number
from nonpareil.evaluation.rows import efficiency_doubt, summary_rows
from nonpareil.maths.bootstrap import Interval


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
    named = ", ".join(
        filter(None, (number(efficiency.estimate, 2), efficiency_doubt(evaluation, efficiency)))
    )
    return f"{sentence}, KL efficiency {named}"


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


def summary_table(evaluation: Evaluation) -> Table:
    """Every metric, as the terminal shows it."""
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
