"""nonpareil distill."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.table import Table

from nonpareil.assets import demo_path
from nonpareil.cli.evaluate import as_figures
from nonpareil.cli.method_flags import parse_with_method
from nonpareil.cli.result import CommandResult
from nonpareil.commands.distill import run as distill
from nonpareil.console import console
from nonpareil.methods import name_of
from nonpareil.models.memory import keep_freed_memory
from nonpareil.options.demo import demo_defaults, uses_demo
from nonpareil.training.config import DistillationConfig

if TYPE_CHECKING:
    from nonpareil.evaluation.metrics import Evaluation

EXAMPLE = (
    "nonpareil distill --model_name_or_path ./my-model --dataset_name my-prompts \\\n"
    "      --reward_model_name_or_path ./my-reward-model --output_dir distilled --max_steps 500"
)


def run(argv: Sequence[str]) -> CommandResult:
    """Parse, train, evaluate, print before and after."""

    def parsed(defaults: dict[str, Any]) -> tuple:
        return parse_with_method(
            "distill",
            (distill.DistillOptions, DistillationConfig),
            argv,
            description=distill.__doc__ or "",
            example=EXAMPLE,
            defaults=defaults,
        )

    keep_freed_memory()
    instances, given, as_json = parsed({"output_dir": "nonpareil-distilled"})
    if uses_demo(given):
        instances, _, as_json = parsed(demo_settings(name_of(type(instances[1].method))))
    figures = distill.run(*instances)
    if not figures:
        return CommandResult(None)  # one of several processes; the first one tells
    terminal = console()
    if "dry_run" in figures:
        terminal.print_json(data=figures, ensure_ascii=True)
        return CommandResult(figures if as_json else None)
    if figures["interrupted"]:
        terminal.print(
            f"Stopped at step {figures['steps']} with a checkpoint in {figures['output_dir']}. "
            "Go on with the same command and --resume_from_checkpoint true --output_dir "
            f"{figures['output_dir']}",
            soft_wrap=True,
        )
        return CommandResult(figures if as_json else None, status=130)
    if "evaluation" in figures:
        terminal.print(before_and_after(figures["evaluation"]))
        terminal.print(f"Report: {figures['report']}", soft_wrap=True)
        figures = as_figures(figures) if as_json else figures
    terminal.print(f"Model:  {figures['output_dir']}", soft_wrap=True)
    if "merged" in figures:
        terminal.print(f"Merged: {figures['merged']}", soft_wrap=True)
    return CommandResult(figures if as_json else None)


def before_and_after(evaluation: "Evaluation") -> Table:
    """The figures that matter, of the reference and of the distilled policy, with 95% intervals."""
    from nonpareil.evaluation.intervals import few_prompts
    from nonpareil.evaluation.summary import bracket, number

    title = f"One sample a prompt, {evaluation.num_prompts} held-out prompts"
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
            "tokens a completion",
            number(evaluation.reference.mean_length.estimate, 1),
            evaluation.policy.mean_length,
        ),
    ]
    for label, before, after in rows:
        most = evaluation.largest_n if after is evaluation.equivalent_n else math.inf
        value = number(after.estimate if after else None, at_most=most)
        table.add_row(label, before, value, bracket(after, at_most=most))
    return table


def demo_settings(method: str = "jbond") -> dict[str, Any]:
    """The demo's options: its models and prompts, and the settings of `assets/demo.yaml`."""
    settings = yaml.safe_load((demo_path("policy").parent / "demo.yaml").read_text(encoding="utf-8"))
    if method != "jbond":
        settings.pop("anchor_ema_rate")  # J-BOND's
    return {
        **demo_defaults("train"),
        "eval_dataset_name": str(demo_path("prompts") / "test.parquet"),
        **settings,
    }
