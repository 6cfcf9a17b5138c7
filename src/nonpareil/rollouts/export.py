"""Scored groups as TRL's datasets: preference, SFT and unpaired preference."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group, Message, PromptText
from nonpareil.rollouts.columns import ESCAPE
from nonpareil.rollouts.row_files import write_rows
from nonpareil.rollouts.select import Truncated, best, eligible, worst

ExportFormat = Literal["preference", "sft", "unpaired"]
FIELDS: dict[str, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "sft": ("prompt", "completion"),
    "unpaired": ("prompt", "completion", "label"),
}
UNREAD = ("prompt_token_ids", "completion_token_ids", "logprobs")
"""Columns of groups that no format has."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what was not."""

    path: Path
    format: ExportFormat
    groups: int
    rows: int
    skipped: dict[str, int]
    """Groups that gave no row, by reason."""


def export(
    groups: Iterable[Group],
    path: str | Path,
    format: ExportFormat,
    *,
    n: int | None = None,
    seed: int = 0,
    truncated: Truncated = "allow",
    overwrite: bool = False,
) -> ExportReport:
    """Write what the best (and worst) completions of the groups are to a .jsonl or .parquet file.

    `preference` has prompt, chosen, rejected; `sft` prompt, completion; `unpaired` prompt, completion, label,
    True for the best and False for the worst. Conversations stay lists of messages. Dataset columns ride
    along; one that has the name of a field is called `columns/<name>`.

    Args:
        groups: scored. They are gone through one by one, for a large Parquet file twice; `reading.stored_groups`
            gives them without holding them all.
        path: its suffix says which kind of file.
        format: one of the three above.
        n: look at the first n completions of each group, so that one pass gives best-of-n for several n.
        seed: of the draw among ties.
        truncated: "exclude" leaves out completions that were cut.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: an unknown format or suffix, an n that the groups do not have or that is too small for
            pairs, or a file that exists.
        DataError: groups without rewards, or none that gives a row.
    """
    path = Path(path)
    _check(path, format, n, overwrite)
    if path.suffix == ".parquet" and iter(groups) is groups:  # they can be gone through once
        groups = list(groups)
    count = written = 0
    skipped: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count, written
        count = written = 0
        skipped.clear()
        for group in groups:
            count += 1
            made = _rows(group, format, n, seed, truncated)
            if isinstance(made, str):
                skipped[made] += 1
                continue
            written += len(made)
            for row in made:
                yield {**row, **_further(group, FIELDS[format])}
        if not written:
            reasons = "; ".join(f"{number} {reason}" for reason, number in skipped.items())
            raise DataError(
                f"none of the {count} groups gives a row of {format}: {reasons or 'there are none'}"
            )

    write_rows(path, rows)
    return ExportReport(path, format, count, written, dict(skipped))


def _check(path: Path, format: str, n: int | None, overwrite: bool) -> None:
    if format not in FIELDS:
        raise ConfigError(f"format={format!r} must be one of {', '.join(get_args(ExportFormat))}")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"output={str(path)!r} must end in .jsonl or .parquet")
    if n is not None and n < (1 if format == "sft" else 2):
        raise ConfigError(f"n={n} is too small for {format}; it takes at least {1 if format == 'sft' else 2}")
    if path.exists() and not overwrite:
        raise ConfigError(f"output={str(path)!r} exists; give another path, or overwrite (--overwrite)")


def _rows(
    group: Group, format: ExportFormat, n: int | None, seed: int, truncated: Truncated
) -> list[dict[str, Any]] | str:
    """The group's rows, or why it has none."""
    rewards = eligible(group, n, truncated)
    top = best(group, n, seed=seed, truncated=truncated)
    low = worst(group, n, seed=seed, truncated=truncated)
    if top is None or low is None:
        return "without a completion that may be chosen"
    prompt, chosen = _turns(group.prompt, group.completions[top])
    if format == "sft":
        return [{"prompt": prompt, "completion": chosen}]
    if len(rewards) < 2:
        return "with a single completion that may be chosen"
    if rewards[top] == rewards[low]:
        return "with all rewards equal"
    if group.completions[top] == group.completions[low]:
        return "whose best and worst have the same text"
    _, rejected = _turns(group.prompt, group.completions[low])
    if format == "preference":
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]
    return [
        {"prompt": prompt, "completion": chosen, "label": True},
        {"prompt": prompt, "completion": rejected, "label": False},
    ]


def _turns(prompt: PromptText, completion: str) -> tuple[PromptText, str | list[Message]]:
    if isinstance(prompt, str):
        return prompt, completion
    answer = {"role": "assistant", "content": completion}
    if prompt[-1]["role"] == "assistant":
        # The completion went on from these words; as two messages a chat template would part them.
        return prompt[:-1], [{**answer, "content": prompt[-1]["content"] + completion}]
    return prompt, [answer]


def _further(group: Group, fields: tuple[str, ...]) -> dict[str, Any]:
    return {ESCAPE + name if name in fields else name: value for name, value in group.columns.items()}
