"""nonpareil evaluate."""

from collections.abc import Sequence
from typing import Any

from nonpareil.cli.parsing import parse
from nonpareil.cli.result import CommandResult
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.console import console

EXAMPLE = (
    "nonpareil evaluate --model_name_or_path ./distilled --reference_model_name_or_path ./my-model \\\n"
    "      --dataset_name held-out.jsonl --reward_model_name_or_path ./my-reward-model"
)


def run(argv: Sequence[str]) -> CommandResult:
    """Parse, evaluate, print the summary."""
    (options,), _, as_json = parse(
        "evaluate", [evaluate.EvaluateOptions], argv, description=evaluate.__doc__ or "", example=EXAMPLE
    )
    figures = evaluate.run(options)
    show(figures)
    return CommandResult(as_figures(figures) if as_json else None)


def show(figures: dict[str, Any]) -> None:
    """The summary table, the headline and where the report lies, on stderr."""
    from nonpareil.evaluation.summary import headline, summary_table

    terminal = console()
    terminal.print(summary_table(figures["evaluation"]))
    terminal.print(headline(figures["evaluation"]), style="bold")
    terminal.print(f"Report: {figures['report']}", soft_wrap=True)


def as_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures as JSON has them."""
    from nonpareil.files import jsonable

    return jsonable({**figures, "evaluation": figures["evaluation"].to_dict()})
