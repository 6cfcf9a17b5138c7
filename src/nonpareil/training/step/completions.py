"""A step's completions, to be looked at: a Parquet file of each logged step, and a few of them on the console."""

import io
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from nonpareil.files import write_bytes
from nonpareil.methods.base import PolicyGradientTargets
from nonpareil.records import Logged, PromptText, turn_text
from nonpareil.training.step.batch import StepBatch
from nonpareil.training.step.logged import OWN_COLUMNS

if TYPE_CHECKING:
    from rich.table import Table

    from nonpareil.training.config import DistillationConfig

COMPLETIONS_FOLDER = "completions"
SHOWN_ON_A_TERMINAL = 3
WIDEST = 140
"""Columns of a terminal that the table of completions takes at most."""
_MOST_CHARACTERS = 400
"""Of a prompt or a completion there: a prompt's last, a completion's first."""
_NUMBERS = ("step", "advantage")


def log_completions(
    config: "DistillationConfig", step: int, batch: StepBatch, targets: Any, show: Callable[[str], None]
) -> None:
    """Write the step's completions, send them to W&B and trackio where those are reported to, and show a few."""
    rows = completion_rows(batch, targets, step)
    write_completions(Path(str(config.output_dir)), step, rows)
    _report(config.report_to, rows)
    count = config.num_completions_to_print
    if count is None:
        count = SHOWN_ON_A_TERMINAL if sys.stderr.isatty() else 0
    if count:
        show(as_text(completions_table(rows, step, count, config.seed)))


def completion_rows(batch: StepBatch, targets: Any, step: int) -> list[dict[str, Any]]:
    """One row per completion: who drew it, its rewards, its advantage where there is such a thing, what was logged.

    Of stored groups nothing is logged.
    """
    k, logged = batch.num_policy, batch.logged or [Logged()] * len(batch.groups)
    extra = list(dict.fromkeys(column for each in logged for column in each.columns))
    advantages = targets.advantages.tolist() if isinstance(targets, PolicyGradientTargets) else None
    return [
        {
            "step": step,
            "prompt": group.prompt,
            "completion": group.completions[j],
            "drawn_by": "policy" if j < k else "anchor",
            **{reward_column(name): values[j] for name, values in group.rewards_by_name.items()},
            "advantage": advantages[row][j] if advantages is not None and j < k else None,
            **{column: _at(logged[row].columns.get(column, ()), j) for column in extra},
        }
        for row, group in enumerate(batch.groups)
        for j in range(len(group))
    ]


def reward_column(name: str) -> str:
    """Of a reward: its name, unless the table has that."""
    return f"rewards/{name}" if name in OWN_COLUMNS else name


def write_completions(output_dir: Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """`completions/completions_<step>.parquet`, there whole or not at all; see `completion_rows`.

    The prompt is text where all are. Else it is a list of messages `{role, content}`, as the dataset has
    conversations; a prompt that is text is then one message without a role.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    content = io.BytesIO()
    table = pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})
    pq.write_table(table, content)
    write_bytes(output_dir / COMPLETIONS_FOLDER / f"completions_{step:05d}.parquet", content.getvalue())


def _column(name: str, values: list[Any]) -> pa.Array:
    """Of one type; values that have none in common (of a reward's `log_extra`) as JSON text."""
    if name == "prompt":
        return _prompts(values)
    if all(value is None or type(value) in (int, float) for value in values) and name != "step":
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    try:
        if any(isinstance(value, dict | list) for value in values):
            raise TypeError
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return pa.array([value if value is None else json.dumps(value) for value in values], pa.string())


def _prompts(prompts: list[PromptText]) -> pa.Array:
    if all(isinstance(prompt, str) for prompt in prompts):
        return pa.array(prompts, pa.string())
    chats = [[{"content": p}] if isinstance(p, str) else p for p in prompts]
    names = list(
        dict.fromkeys(("role", "content", *(key for chat in chats for turn in chat for key in turn)))
    )
    kind = pa.list_(pa.struct([(name, pa.string()) for name in names]))
    return pa.array([[{key: _text(value) for key, value in turn.items()} for turn in c] for c in chats], kind)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def completions_table(rows: Sequence[dict[str, Any]], step: int, count: int, seed: int) -> "Table":
    """`count` of the policy's completions, or the anchor's where it drew none; seed and step say which."""
    from rich.table import Table

    drawn = [row for row in rows if row["drawn_by"] == "policy"] or list(rows)
    places = random.Random(f"{seed}/{step}").sample(range(len(drawn)), min(count, len(drawn)))
    names = [name for name in rows[0] if name not in ("step", "drawn_by")]
    names = [name for name in names if name != "advantage" or any(row[name] is not None for row in drawn)]
    table = Table(title=f"Step {step}: {len(places)} of {len(drawn)} completions", show_lines=True)
    for name in names:
        is_text = any(isinstance(row[name], str | list) for row in drawn)
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for place in sorted(places):
        table.add_row(*(_cell(name, drawn[place][name]) for name in names))
    return table


def as_text(table: "Table") -> str:
    """The table as it stands on this terminal, at most `WIDEST` columns wide."""
    from nonpareil.console import console

    terminal = console()
    terminal.width = min(terminal.width, WIDEST)
    with terminal.capture() as captured:
        terminal.print(table)
    return captured.get().rstrip("\n")


def _cell(name: str, value: Any) -> str:
    if name == "prompt":
        turns = [value] if isinstance(value, str) else [turn_text(turn) for turn in value]
        text = "\n".join(turns)
        return text if len(text) <= _MOST_CHARACTERS else "..." + text[-_MOST_CHARACTERS:]
    if value is None:
        return "-"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."


def _report(report_to: Any, rows: Sequence[dict[str, Any]]) -> None:
    """As TRL has it: a table named `completions`, where the integration's own run is open."""
    for name in ("wandb", "trackio"):
        module = sys.modules.get(name)
        if module is None or name not in (report_to or ()) or getattr(module, "run", True) is None:
            continue
        import pandas

        frame = pandas.DataFrame([{**row, "prompt": _cell("prompt", row["prompt"])} for row in rows])
        module.log({"completions": module.Table(dataframe=frame)})
