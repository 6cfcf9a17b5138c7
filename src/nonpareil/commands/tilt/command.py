"""Tilt a policy's vocabulary towards best-of-N: counted from stored groups in seconds, without any training."""

from typing import Any

from nonpareil.commands.command import Command
from nonpareil.commands.tilt.run import run
from nonpareil.console import console
from nonpareil.options.tilt import TiltOptions

_PATH_ROWS = 8


def show(result: dict[str, Any]) -> None:
    """The path by strength, what was chosen of it and where it lies; on stderr."""
    from rich.table import Table

    from nonpareil.evaluation.intervals import few_prompts
    from nonpareil.evaluation.numbers import MISSING, bracket, number
    from nonpareil.maths.bootstrap import Interval
    from nonpareil.terminal import printable

    def told(interval: Interval | None) -> str:
        return MISSING if interval is None else f"{number(interval.estimate)} {bracket(interval)}"

    table = Table(title="What the tilt does, as the stored completions tell it")
    for name in ("strength", "win rate", "KL (nats)", "effective completions"):
        table.add_column(name, justify="right")
    rows = result["path"]
    for row in rows[:: max(1, len(rows) // _PATH_ROWS)]:
        table.add_row(
            number(row["strength"], 2),
            number(row["win_rate"]),
            number(row["kl"]),
            number(row["effective_samples"], 0),
        )
    terminal = console()
    terminal.print(table)
    chosen = result["estimate"]
    terminal.print(
        f"Strength {chosen.strength:.2f}: win rate {told(chosen.win_rate)}, KL {told(chosen.kl)} nats, "
        f"KL efficiency {told(chosen.kl_efficiency)}",
        style="bold",
        soft_wrap=True,
    )
    for way, words in result["tokens"].items():
        terminal.print(f"{way}: {', '.join(repr(printable(word)) for word in words)}", soft_wrap=True)
    for line in (
        _fold_line(result.get("fold")),
        _bias_line(result),
        few_prompts(chosen.win_rate.num_prompts),
    ):
        if line:
            terminal.print(line, soft_wrap=True)


def _fold_line(fold: dict[str, Any] | None) -> str | None:
    if fold is None:
        return None
    return (
        f"The model ({fold['dtype']}): KL from the tilt {fold['kl']:.2g} nats a token, {fold['share']:.1%} of the "
        f"tilt's own; h.d = {fold['mean']:.2f} +- {fold['spread']:.2f}"
    )


def _bias_line(result: dict[str, Any]) -> str:
    sent = result["logit_bias"]
    return (
        f"All in {result['output_dir']}; logit_bias.json has {sent['entries']} tokens, {sent['share']:.0%} of the "
        "tilt. Next: nonpareil evaluate on held-out prompts"
    )


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result, its estimate as numbers."""
    from nonpareil.files import jsonable

    return jsonable(result)


COMMAND = Command(
    description=__doc__ or "",
    example=("nonpareil tilt --groups groups --model_name_or_path ./my-model --n 2 --output_dir ./tilted"),
    options=lambda: [TiltOptions],
    run=run,
    show=show,
    as_json=as_json,
)
