"""What `nonpareil evaluate` says of its result: on stderr, and as JSON."""

from typing import Any

from nonpareil.console import console


def show(result: dict[str, Any]) -> None:
    """The summary table, the headline and where the report lies, on stderr."""
    from nonpareil.evaluation.summary import headline, summary_table

    terminal = console()
    terminal.print(summary_table(result["evaluation"]))
    terminal.print(headline(result["evaluation"]), style="bold")
    terminal.print(f"Report: {result['report']}", soft_wrap=True)


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result, with the figures of its `Evaluation`, where it has one, as JSON has them."""
    if "evaluation" not in result:
        return result
    from nonpareil.files import jsonable

    return jsonable({**result, "evaluation": result["evaluation"].to_dict()})
