"""nonpareil export."""

from collections.abc import Sequence

from nonpareil.cli.parsing import parse
from nonpareil.cli.result import CommandResult
from nonpareil.commands import export
from nonpareil.console import console

EXAMPLE = "nonpareil export --groups nonpareil-groups --format preference --output pairs.jsonl"


def run(argv: Sequence[str]) -> CommandResult:
    """Parse, export, say what was left out."""
    (options,), _, as_json = parse(
        "export", [export.ExportOptions], argv, description=export.__doc__ or "", example=EXAMPLE
    )
    figures = export.run(options)
    skipped = "".join(f"; {count} groups skipped: {reason}" for reason, count in figures["skipped"].items())
    console().print(f"{figures['rows']} rows in {figures['output']}{skipped}", soft_wrap=True)
    return CommandResult(figures if as_json else None)
