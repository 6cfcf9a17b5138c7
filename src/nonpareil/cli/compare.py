"""nonpareil compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table

from nonpareil.commands.command import Command
from nonpareil.commands.compare import run as compare
from nonpareil.commands.compare.spec import BudgetOptions, CompareOptions, EvaluationOptions, PoolOptions
from nonpareil.console import console
from nonpareil.errors import ConfigError
from nonpareil.options.shared import FileOptions
from nonpareil.settings import option

if TYPE_CHECKING:
    from nonpareil.commands.compare.tables import Table as Content

DESCRIPTION = f"""{compare.__doc__}

Two sections of the file hold settings of `nonpareil distill`; the others' keys are listed below.
  training:    any of them, for all methods
  methods:     name: {{method: bond (default: the name), stored: true, any of them}}
               or name: {{command: [words with {{output_dir}} {{seed}} {{groups}} {{pairs}} {{model}} {{python}}]}}
Run again to go on: what is done is not done twice.
"""
SHOWN = ("method", "win rate", "gold win rate", "KL, nats", "KL efficiency", "length, %", "on the front")
MIN_WIDTH = 120


@dataclass
class ComparisonFlags(FileOptions):
    """What is said beside the comparison's file."""

    HEADING: ClassVar = "Options"

    output_dir: str | None = option(None, "In place of the file's.", path=True)
    only: str | None = option(None, "Run this method alone; the report has all that are done.")
    overwrite: bool = option(False, "Make anew what was made with other settings; keep the rest.")


def run(flags: ComparisonFlags) -> dict[str, Any]:
    """See `commands.compare.run.run`."""
    if flags.config_file is None:
        raise ConfigError(
            "config is missing; give --config FILE.yaml (nonpareil compare --help lists its keys)"
        )
    return compare.run(
        flags.config_file, output_dir=flags.output_dir, overwrite=flags.overwrite, only=flags.only
    )


def status(figures: dict[str, Any]) -> int:
    """1 where some of the runs failed."""
    return 1 if figures["failures"] else 0


def show(figures: dict[str, Any]) -> None:
    """What was gained at what cost, the failures, and where the report lies; on stderr."""
    from nonpareil.commands.compare.report import headline
    from nonpareil.commands.compare.tables import tables

    terminal = console()
    terminal.width = max(terminal.width, MIN_WIDTH)  # narrower, cells would be cut to nothing
    if figures["comparison"] is not None:
        gain, *others = tables(figures["comparison"])
        places = [i for i, label in enumerate(gain.header) if label in SHOWN]
        terminal.print(_table(gain, places, f"{gain.title}, all figures in the report"))
        if figures["comparison"].pairs:
            pairs = others[0]
            terminal.print(_table(pairs, [0, 1, 2, -2, -1], pairs.title))
        terminal.print(headline(figures["comparison"]), style="bold")
    for run in figures["over_budget"]:
        terminal.print(f"Over the budget: {run['run']}: {run['reason']}", soft_wrap=True)
    for failure in figures["failures"]:
        terminal.print()
        terminal.print(f"Failed: {failure['run']}: {failure['reason']}", soft_wrap=True)
    terminal.print(f"Report: {figures['report'] or 'none, no run is finished'}", soft_wrap=True)


def _table(content: "Content", places: Sequence[int], title: str) -> Table:
    """Some of its columns, as the terminal shows them."""
    shown = Table(title=title, title_justify="left")
    for place in places:
        shown.add_column(content.header[place], justify="right" if place else "left", no_wrap=True)
    for row in content.rows:
        shown.add_row(*(row[place] for place in places))
    return shown


def as_json(figures: dict[str, Any]) -> dict[str, Any]:
    """The report's methods by name and its pairs, beside failures and places."""
    report = figures["comparison"]
    rows: dict[str, Any] = {}
    pairs: list[Any] = []
    if report is not None:
        content = report.to_dict()
        rows, pairs = {row["name"]: row for row in content["methods"]}, content["pairs"]
    return {**figures, "comparison": rows, "pairs": pairs}


def _keys() -> dict[str, type]:
    return {
        "": CompareOptions,
        "budget": BudgetOptions,
        "groups": PoolOptions,
        "evaluation": EvaluationOptions,
    }


COMMAND = Command(
    description=DESCRIPTION,
    example="nonpareil compare --config comparison.yaml --output_dir comparison",
    options=lambda: [ComparisonFlags],
    run=run,
    show=show,
    as_json=as_json,
    status=status,
    keys=_keys,
    config="What to compare.",
    config_is_options=False,
)
