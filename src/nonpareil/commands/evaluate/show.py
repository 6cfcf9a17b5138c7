"""What `nonpareil evaluate` says of its result: on stderr, and as JSON."""

from typing import TYPE_CHECKING, Any

from nonpareil.console import PlainConsole, console

if TYPE_CHECKING:
    from nonpareil.evaluation.strength_path import StrengthPath

MIN_WIDTH = 100


def wide_console() -> PlainConsole:
    """For tables of which in a narrower terminal the cells would be cut to nothing."""
    return console(width=max(console().width, MIN_WIDTH))


def show(result: dict[str, Any]) -> None:
    """The summary table (of a path its tables), the headline and where the report lies, on stderr."""
    from nonpareil.evaluation.by_source import metrics_table
    from nonpareil.evaluation.summary import headline, summary_table

    terminal = console()
    if "path" in result:
        _show_path(result["path"])
        terminal.print(f"Report: {result['report']}", soft_wrap=True)
        return
    evaluation = result["evaluation"]
    terminal.print(summary_table(evaluation))
    if evaluation.by_source:
        table = metrics_table(evaluation.by_source, evaluation.comparison.zero_one)
        wide_console().print(table)
    terminal.print(headline(evaluation), style="bold")
    terminal.print(f"Report: {result['report']}", soft_wrap=True)


def _show_path(path: "StrengthPath") -> None:
    from nonpareil.evaluation.path_tables import terminal_tables

    terminal = wide_console()
    for table in terminal_tables(path):
        terminal.print(table)
    terminal.print(path.headline(), style="bold")


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result, with the metrics of its `Evaluation`, where it has one, as JSON has them."""
    if "path" in result:
        return {**result, "path": result["path"].to_dict()}
    if "evaluation" not in result:
        return result
    from nonpareil.files import jsonable

    return jsonable({**result, "evaluation": result["evaluation"].to_dict()})
