"""The options of `nonpareil curve`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.shared import FileOptions
from nonpareil.setting_types import SEED
from nonpareil.settings import option


@dataclass
class CurveOptions(FileOptions):
    """Options of `nonpareil curve`."""

    HEADING: ClassVar = "Options"

    groups: str | None = option(
        None,
        "A folder written by `nonpareil sample`, one of its shards, or vBoN's JSON lines.",
        names="input",
    )
    max_n: int | None = option(None, "Largest N. Default: the completions per prompt, m.", at_least=1)
    output_dir: str | None = option(
        None, "Where curve.json and curve.png go. Default: <groups>/curve, or beside the file.", path=True
    )
    seed: int = option(0, "Of the bootstrap.", at_least=0, at_most=SEED)
