"""The options of `nonpareil export`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.selection import ChoiceOptions
from nonpareil.options.shared import FileOptions
from nonpareil.setting_types import SEED
from nonpareil.settings import option


@dataclass
class ExportOptions(ChoiceOptions, FileOptions):
    """Options of `nonpareil export`."""

    HEADING: ClassVar = "Options"

    groups: str | None = option(
        None,
        "A folder written by `nonpareil sample`, one of its shards, or vBoN's JSON lines.",
        names="input",
    )
    format: str = option(
        "preference",
        "preference, sft or unpaired: TRL's dataset formats.",
        choices=("preference", "sft", "unpaired"),
    )
    output: str | None = option(None, "The .jsonl or .parquet file to write.", path=True)
    n: int | None = option(
        None, "Look at the first n completions of each group: best-of-n for several n.", at_least=1
    )
    seed: int = option(0, "Of the draw among tied completions.", at_least=0, at_most=SEED)
    rule: str | None = option(
        None,
        "The rule that says which completion is the good one, such as majority or soft:temperature=0.5 "
        "(docs/selection.md): the one it most likely chooses. Default: the highest reward.",
    )
    min_reward: float | None = option(
        None,
        "Leave out groups whose best has less. One that ties at or above it has no winner, and gives sft and "
        "unpaired a good completion all the same.",
    )
    min_margin: float | None = option(
        None,
        "Leave out groups whose best has not so much more reward than their worst; of pairs alone.",
        above=0,
        why="the best has more than the worst",
    )
    truncated: str = option(
        "exclude", "exclude completions that were cut, or allow them.", choices=("allow", "exclude")
    )
    overwrite: bool = option(False, "Replace the file that an earlier export wrote.")
