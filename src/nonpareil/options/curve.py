"""The options of `nonpareil curve`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.selection import ChoiceOptions
from nonpareil.options.shared import FileOptions
from nonpareil.setting_types import SEED
from nonpareil.settings import option


@dataclass
class CurveOptions(ChoiceOptions, FileOptions):
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
    rules: list[str] | None = option(
        None,
        "Rules of selection to value on the groups, such as best_of_n soft:temperature=0.5 majority "
        "(docs/selection.md).",
    )
    gold_reward: str | None = option(
        None,
        "A second reward by which the choices of the first are valued, and the N where more draws make them worse: "
        "the name of a stored one, a function, or a verifier.",
        names="reward",
    )
    extrapolate: int | None = option(
        None, "pass@N up to this N, beyond the completions drawn, by a model; of rewards 0 and 1.", at_least=2
    )
    adaptive_n: bool = option(False, "What stopping at a draw that is good enough saves.")
