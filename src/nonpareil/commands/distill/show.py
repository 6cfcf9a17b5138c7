"""What `nonpareil distill` says of its result: the policy before and after, and where it lies; on stderr."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.commands.evaluate.show import wide_console
from nonpareil.console import console

if TYPE_CHECKING:
    from rich.table import Table

    from nonpareil.evaluation.evaluation import Evaluation
    from nonpareil.maths.bootstrap import Interval


def show(result: dict[str, Any]) -> None:
    """What came of a distillation, of one that was interrupted, or of a dry run."""
    terminal = console()
    if "dry_run" in result:
        terminal.print(plan_table(result))
        for warning in result["warnings"]:
            terminal.print(f"Warning: {warning}", soft_wrap=True)
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
        evaluation = result["evaluation"]
        terminal.print(before_and_after(evaluation))
        if evaluation.by_source:
            from nonpareil.evaluation.by_source import metrics_table

            table = metrics_table(evaluation.by_source, evaluation.comparison.zero_one)
            wide_console().print(table)
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


def plan_table(plan: Mapping[str, Any]) -> "Table":
    """What a dry run found, a line each."""
    from rich.table import Table

    table = Table(title="Nothing was trained; this is what would be", show_header=False)
    speed = plan["speed"]
    rows: dict[str, Any] = {
        "method": f"{plan['method']}: {_words(plan['settings'])}",
        "model": f"{plan['model_class']}, {plan['parameters']:,} parameters, "
        f"{plan['trained_parameters']:,} trained",
        "prompts": f"{plan['prompts']:,}, with the columns {', '.join(plan['columns']) or 'none'}",
        "steps": f"{plan['steps']:,}, each of {plan['completions_a_step']:,} fresh completions",
        **{name: _words(plan[name]) for name in ("groups", "credits") if name in plan},
        "GiB held": _words(
            plan["memory_gib"], ("weights", "gradients", "optimizer", "anchor", "working_copy")
        ),
        "GiB in passes, estimated": _words(plan["memory_gib"], ("activations", "logits", "cache")),
        "GiB in all, at most": f"{plan['memory_gib']['total']:g}, of {_word(plan['device_gib'])} that this "
        "device has",
        **{
            f"reward {name}": _words(one) + ", of made-up completions" * ("scores" in one)
            for name, one in plan["rewards"].items()
        },
        "tokens per second": f"not measured: {speed['not_measured']}"
        if "not_measured" in speed
        else f"{_words(speed['tokens_per_second'])}, by {speed['timed_completions']} short completions",
    }
    if "estimated_hours" in speed:
        hours = _words(speed["estimated_hours"])
        rows["hours, an estimate"] = f"{hours}; if completions are as long as they may be, without scoring"
    rows["output_dir"] = plan["output_dir"]
    for label, text in rows.items():
        table.add_row(label, text)
    return table


def _words(values: Mapping[str, Any], names: Sequence[str] | None = None) -> str:
    """Names and values on one line."""
    kept = values if names is None else {name: values[name] for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {_word(value)}" for name, value in kept.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(_word, value))
    return f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)


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
    rows: list[tuple[str, str, Interval | None]] = [
        (
            "success rate" if compared.zero_one else "reward",
            number(compared.reference_mean.estimate),
            compared.policy_mean,
        ),
        *(
            (
                f"  {each.reward}",
                number(each.reference_mean.estimate if each.reference_mean else None),
                each.policy_mean,
            )
            for each in evaluation.each_reward
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
