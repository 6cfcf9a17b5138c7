"""How the terminal and `--json` tell of a comparison."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from nonpareil.console import console

if TYPE_CHECKING:
    from nonpareil.commands.compare.text_table import TextTable

MIN_WIDTH = 120


def status(result: dict[str, Any]) -> int:
    """1 where some of the runs failed."""
    return 1 if result["failures"] else 0


def show(result: dict[str, Any]) -> None:
    """What was gained at what cost, the failures, and where the report lies; on stderr."""
    from nonpareil.commands.compare.report import pareto_sentence
    from nonpareil.commands.compare.tables import tables

    terminal = console()
    terminal.width = max(terminal.width, MIN_WIDTH)  # narrower, cells would be cut to nothing
    if result["comparison"] is not None:
        gain, *others = tables(result["comparison"])
        terminal.print(_table(gain, f"{gain.title}, all metrics in the report"))
        for table in others:
            if table.brief:
                terminal.print(_table(table, table.title))
        terminal.print(pareto_sentence(result["comparison"]), style="bold")
    for run in result["over_budget"]:
        terminal.print(f"Over the budget: {run['run']}: {run['reason']}", soft_wrap=True)
    for failure in result["failures"]:
        terminal.print()
        terminal.print(f"Failed: {failure['run']}: {failure['reason']}", soft_wrap=True)
    terminal.print(f"Report: {result['report'] or 'none, no run is finished'}", soft_wrap=True)


def _table(content: "TextTable", title: str) -> Table:
    """The columns that there is room for."""
    shown = Table(title=title, title_justify="left")
    for place in content.brief:
        shown.add_column(content.header[place], justify="right" if place else "left", no_wrap=True)
    for row in content.rows:
        shown.add_row(*(row[place] for place in content.brief))
    return shown


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The report's methods by name, its pairs and what they pay at equal win rate, beside failures and places."""
    report = result["comparison"]
    rows: dict[str, Any] = {}
    pairs: list[Any] = []
    equal = None
    if report is not None:
        content = report.to_dict()
        rows, pairs = {row["name"]: row for row in content["methods"]}, content["pairs"]
        equal = content["equal_win_rate"]
    return {**result, "comparison": rows, "pairs": pairs, "equal_win_rate": equal}
