"""nonpareil compare."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nonpareil.cli.result import CommandResult
from nonpareil.commands.compare import run as compare
from nonpareil.console import console
from nonpareil.errors import ConfigError

if TYPE_CHECKING:
    from nonpareil.commands.compare.tables import Table as Content

DESCRIPTION = f"""{compare.__doc__}

The file's keys: output_dir, model_name_or_path, dataset_name (training prompts), eval_dataset_name (held-out
prompts), the reward_* options, gold_reward, max_completion_length, temperature, n, seeds, checkpoints,
  budget:      completions or seconds, of each run (a command's own are counted, not bounded)
  groups:      num_generations, max_prompts, seed: the pool that methods with `stored: true` share
  evaluation:  num_generations, num_reference_samples, checkpoint_prompts, checkpoint_num_generations,
               kl_dtype, seed
  training:    any option of `nonpareil distill`, for all methods
  methods:     name: {{method: bond (default: the name), stored: true, any option of `nonpareil distill`}}
               or name: {{command: [words with {{output_dir}} {{seed}} {{groups}} {{pairs}} {{model}} {{python}}]}}
Run again to go on: what is done is not done twice.
"""
MIN_WIDTH = 120
EXAMPLE = "nonpareil compare --config comparison.yaml --output_dir comparison"


def run(argv: Sequence[str]) -> CommandResult:
    """Parse, compare, print the table and what failed."""
    from transformers.utils import logging

    arguments = _parse(argv)
    if arguments.config is None:
        raise ConfigError(
            "config is missing; give --config FILE.yaml (nonpareil compare --help lists its keys)"
        )
    logging.disable_progress_bar()  # of loading weights
    figures = compare.run(
        arguments.config,
        output_dir=arguments.output_dir,
        overwrite=arguments.overwrite,
        only=arguments.only,
    )
    show(figures)
    return CommandResult(
        _as_json(figures) if arguments.json else None, status=1 if figures["failures"] else 0
    )


def show(figures: dict[str, Any]) -> None:
    """What was gained at what cost, the failures, and where the report lies; on stderr."""
    from nonpareil.commands.compare.report import pareto_sentence
    from nonpareil.commands.compare.tables import tables

    terminal = console()
    terminal.width = max(terminal.width, MIN_WIDTH)  # narrower, cells would be cut to nothing
    if figures["comparison"] is not None:
        gain, *others = tables(figures["comparison"])
        terminal.print(_table(gain, f"{gain.title}, all figures in the report"))
        for table in others:
            if table.brief:
                terminal.print(_table(table, table.title))
        terminal.print(pareto_sentence(figures["comparison"]), style="bold")
    for run in figures["over_budget"]:
        terminal.print(f"Over the budget: {run['run']}: {run['reason']}", soft_wrap=True)
    for failure in figures["failures"]:
        terminal.print()
        terminal.print(f"Failed: {failure['run']}: {failure['reason']}", soft_wrap=True)
    terminal.print(f"Report: {figures['report'] or 'none, no run is finished'}", soft_wrap=True)


def _table(content: "Content", title: str) -> Table:
    """The columns that there is room for."""
    shown = Table(title=title, title_justify="left")
    for place in content.brief:
        shown.add_column(content.header[place], justify="right" if place else "left", no_wrap=True)
    for row in content.rows:
        shown.add_row(*(row[place] for place in content.brief))
    return shown


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from nonpareil.cli.parsing import refuse_unknown_flags

    parser = argparse.ArgumentParser(
        prog="nonpareil compare",
        description=DESCRIPTION,
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="What to compare.")
    parser.add_argument("--output_dir", metavar="FOLDER", help="In place of the file's.")
    parser.add_argument(
        "--only", metavar="NAME", help="Run this method alone; the report has all that are done."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Make anew what was made with other settings; keep the rest."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object as the last line of stdout."
    )
    names = [action.dest for action in parser._actions]
    refuse_unknown_flags(argv, parser, names)
    return parser.parse_args(list(argv))


def _as_json(figures: dict[str, Any]) -> dict[str, Any]:
    report = figures["comparison"]
    rows: dict[str, Any] = {}
    pairs: list[Any] = []
    if report is not None:
        content = report.to_dict()
        rows, pairs = {row["name"]: row for row in content["methods"]}, content["pairs"]
    return {**figures, "comparison": rows, "pairs": pairs}
