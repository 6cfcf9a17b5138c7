"""Say what best-of-N is worth for every N, from groups on disk."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.jobs.options import _help


@dataclass
class CurveOptions:
    """Options of `nonpareil curve`."""

    groups: str | None = field(
        default=None,
        metadata=_help("A folder written by `nonpareil sample`, one of its shards, or vBoN's JSON lines."),
    )
    max_n: int | None = field(
        default=None, metadata=_help("Largest N. Default: the completions a prompt, m.")
    )
    output_dir: str | None = field(
        default=None,
        metadata=_help("Where curve.json and curve.png go. Default: <groups>/curve, or beside the file."),
    )
    seed: int = field(default=0, metadata=_help("Of the bootstrap."))


def run(options: CurveOptions) -> dict[str, Any]:
    """Write curve.json and curve.png, print the table; returns the curve.

    Of a run that is not finished it is the curve of the shards that are, and `unfinished` says of how many.

    Raises:
        NonpareilError: no such groups, groups without rewards, or a max_n beyond m.
    """
    if options.groups is None:
        raise ConfigError("groups is missing; give a folder written by `nonpareil sample`: --groups FOLDER")
    from nonpareil.evaluation import best_of_n_report
    from nonpareil.evaluation.report import write_curve
    from nonpareil.rollouts.reading import read_available
    from nonpareil.rollouts.vbon import read_vbon

    source = Path(options.groups)
    is_vbon = source.suffix in (".json", ".jsonl")
    groups, lacking = (read_vbon(source), "") if is_vbon else read_available(source)
    curve = best_of_n_report(groups, options.max_n, seed=options.seed)
    output_dir = Path(options.output_dir) if options.output_dir else _beside(source)
    path = write_curve(curve, output_dir)
    _show(curve)
    if lacking:
        print(f"{source} is not finished: {lacking}; this is the curve of those", file=sys.stderr)
    figures = {"curve": str(path), "picture": str(output_dir / "curve.png"), **curve.to_dict()}
    return {**figures, "unfinished": lacking} if lacking else figures


def _beside(source: Path) -> Path:
    return source / "curve" if source.is_dir() else source.with_name(source.stem + "-curve")


def _show(curve: Any) -> None:
    from rich.table import Table

    from nonpareil.console import console
    from nonpareil.evaluation.summary import bracket, number

    table = Table(title=f"What best-of-N is worth ({curve.num_prompts} prompts)")
    for name in ("N", "reward", "95%", "win rate", "ceiling", "KL bound (nats)", "tokens a prompt"):
        table.add_column(name, justify="right", no_wrap=name == "95%")
    for point in curve.points:
        win = None if point.win_rate is None else point.win_rate.estimate
        table.add_row(
            str(point.n),
            number(point.reward.estimate),
            bracket(point.reward),
            number(win),
            number(point.win_rate_ceiling),
            number(point.kl_upper_bound),
            number(point.tokens_per_prompt, 0),
        )
    terminal = console()
    terminal.print(table)
    terminal.print(curve.recommendation(), soft_wrap=True)
