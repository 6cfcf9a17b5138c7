"""What `nonpareil distill` says of its result: the policy before and after, and where it lies; on stderr."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nonpareil.console import console

if TYPE_CHECKING:
    from rich.table import Table

    from nonpareil.evaluation.evaluation import Evaluation


def show(result: dict[str, Any]) -> None:
    """What came of a distillation, of one that was interrupted, or of a dry run."""
    terminal = console()
    if "dry_run" in result:
        terminal.print_json(data=result, ensure_ascii=True)
        return
    if result["interrupted"]:
        terminal.print(
            f"Stopped at step {result['steps']} with a checkpoint in {result['output_dir']}. "
            "Go on with the same command and --resume_from_checkpoint true --output_dir "
            f"{result['output_dir']}",
            soft_wrap=True,
        )
        return
    if "evaluation" in result:
        terminal.print(before_and_after(result["evaluation"]))
        terminal.print(f"Report: {result['report']}", soft_wrap=True)
    terminal.print(f"Model:  {result['output_dir']}", soft_wrap=True)
    if "pushed" in result:
        terminal.print(f"Pushed: {result['pushed']}", soft_wrap=True)
    if "merged" in result:
        terminal.print(f"Merged: {result['merged']}", soft_wrap=True)
    if result.get("at_strength", {}).get("strength") is not None:
        terminal.print(at_strength(result["at_strength"]), soft_wrap=True)


def status(result: dict[str, Any]) -> int:
    """The exit status: that of an interrupted command where training was stopped."""
    return 130 if result.get("interrupted") else 0


def at_strength(found: Mapping[str, Any]) -> str:
    """The policy that wins as often as asked, in two lines."""
    from nonpareil.evaluation.numbers import bracket, number

    n, target = found["asked"]["n"], number(found["asked"]["win_rate"])
    asked = f"win rate {target}" if n is None else f"best-of-{n}'s win rate, {target}"
    rate, kl = (f"{number(found[name].estimate)} {bracket(found[name])}" for name in ("win_rate", "kl"))
    return (
        f"At strength {found['strength']:.3g}: {found['output_dir']}\n"
        f"        {asked} was asked for; measured: {rate} at {kl} nats"
    )


def before_and_after(evaluation: "Evaluation") -> "Table":
    """The metrics that matter, of the reference and of the distilled policy, with 95% intervals."""
    from rich.table import Table

    from nonpareil.evaluation.intervals import few_prompts
    from nonpareil.evaluation.numbers import bracket, number

    title = f"One sample per prompt, {evaluation.num_prompts} held-out prompts"
    table = Table(title=title, caption=few_prompts(evaluation.num_prompts))
    for name in ("", "before", "after", "95%"):
        table.add_column(name, justify="left" if not name else "right")
    compared = evaluation.comparison
    rows = [
        (
            "success rate" if compared.zero_one else "reward",
            number(compared.reference_mean.estimate),
            compared.policy_mean,
        ),
        ("win rate against before", ".500", compared.win_rate),
        ("KL from before, nats", ".000", evaluation.kl),
        ("KL efficiency (1 is the limit)", "", evaluation.kl_efficiency),
        ("worth best-of-", "1.00", evaluation.equivalent_n),
        (
            "tokens per completion",
            number(evaluation.reference.mean_length.estimate, 1),
            evaluation.policy.mean_length,
        ),
    ]
    for label, before, after in rows:
        most = evaluation.largest_n if after is evaluation.equivalent_n else math.inf
        value = number(after.estimate if after else None, at_most=most)
        table.add_row(label, before, value, bracket(after, at_most=most))
    return table
