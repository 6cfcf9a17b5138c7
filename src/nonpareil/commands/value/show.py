"""What is said of a fitted value and of credits; on stderr."""

from typing import TYPE_CHECKING, Any

from nonpareil.console import console

if TYPE_CHECKING:
    from nonpareil.values.report import ValueReport


def show_value(result: dict[str, Any]) -> None:
    """How good the value is, and what to do next."""
    print_report(result["report"])
    console().print(
        f"Value:  {result['output_dir']}. Next: nonpareil credits --value {result['output_dir']} --groups ...",
        soft_wrap=True,
    )


def print_report(report: "ValueReport") -> None:
    """Likelihood and correlation by position, then calibration."""
    from rich.table import Table

    from nonpareil.evaluation.intervals import few_prompts
    from nonpareil.evaluation.numbers import bracket, number

    terminal = console()
    table = Table(
        title=f"The value on {report.prompts} held-out prompts", caption=few_prompts(report.prompts)
    )
    for name in ("after", "completions", "gain on a uniform law, nats", "squared correlation"):
        table.add_column(name, justify="right")
    for one in report.by_position:
        after = "the end" if one.tokens is None else f"{one.tokens} tokens"
        table.add_row(after, str(one.completions), number(one.gain), number(one.squared_correlation))
    terminal.print(table)
    terminal.print(
        f"All prefixes: {number(report.gain.estimate)} {bracket(report.gain)}, and {number(report.fitted_gain)} on "
        "prompts that it was fitted on",
        soft_wrap=True,
    )
    seen = ", ".join(f"{number(one.predicted, 2)}: {number(one.seen, 2)}" for one in report.calibration)
    terminal.print(f"Quantile predicted and seen, by tenths of the prefixes: {seen}", soft_wrap=True)


def show_credits(result: dict[str, Any]) -> None:
    """How much was credited, and whether the value agrees with itself."""
    totals = result["totals"]
    terminal = console()
    terminal.print(
        f"Credits of {totals['completions']} completions ({totals['positions']} tokens, {totals['candidates']} "
        f"candidates each) in {result['output_dir']}. Next: nonpareil distill --method value_distillation "
        f"--groups ... --credits {result['output_dir']}",
        soft_wrap=True,
    )
    terminal.print(
        f"Probability of the exact candidates {totals['mass']:.3f}, drift {totals['drift']:.3f} of what next "
        f"tokens differ by, {totals['large_share']:.3f} of the probability beyond 2 nats",
        soft_wrap=True,
    )
