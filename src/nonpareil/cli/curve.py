"""nonpareil curve."""

from collections.abc import Sequence

from nonpareil.cli.parsing import parse
from nonpareil.cli.result import CommandResult
from nonpareil.commands import curve

EXAMPLE = "nonpareil curve --groups nonpareil-groups"


def run(argv: Sequence[str]) -> CommandResult:
    """Parse, compute, print the table."""
    (options,), _, as_json = parse(
        "curve", [curve.CurveOptions], argv, description=curve.__doc__ or "", example=EXAMPLE
    )
    figures = curve.run(options)
    return CommandResult(figures if as_json else None)
