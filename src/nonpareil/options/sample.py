"""The options of `nonpareil sample`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass, replace
from typing import ClassVar

from nonpareil.engines.checks import check_stop
from nonpareil.options.engines import EngineOptions
from nonpareil.options.guidance import GuidanceOptions
from nonpareil.options.rewards import RewardOptions
from nonpareil.options.shared import WITH_SPLITS, FileOptions, ModelOptions, PromptOptions, SamplingOptions
from nonpareil.records import SamplingParams
from nonpareil.settings import option


@dataclass
class SampleOptions(
    ModelOptions, PromptOptions, RewardOptions, SamplingOptions, EngineOptions, GuidanceOptions, FileOptions
):
    """Options of `nonpareil sample`."""

    HEADING: ClassVar = "Output"

    model_name_or_path: str | None = option(
        None,
        "Model directory or hub name. Default: the embedded demo, if no prompts or rewards are named.",
        names="input",
        replaces_demo=True,
        heading="Policy",
    )
    output_dir: str = option("nonpareil-groups", "Where the groups go; run again to go on.", path=True)
    dataset_split: str = option(
        "train", "Of a dataset that has splits.", reader=WITH_SPLITS, heading="Prompts"
    )
    max_prompts: int | None = option(None, "The first ones only.", at_least=1, heading="Prompts")
    num_generations: int = option(
        8,
        "Completions per prompt, m.",
        at_least=2,
        why="best-of-N compares draws of one prompt",
        heading="Drawing",
    )
    repetition_penalty: float = option(
        1.0,
        "Above 1: tokens that prompt or completion have already become unlikelier. Not for training.",
        above=0,
        why="1 leaves all as they are",
        of="engine=transformers|openai|ray",
        heading="Drawing",
    )
    stop: list[str] | None = option(
        None,
        "Texts that end a completion, and are left out of it; in a shell $'\\n\\n' is an empty line. "
        "Not for training.",
        also=(list,),
        of="engine=transformers|openai|ray",
        heading="Drawing",
    )
    shard_size: int = option(64, "Prompts per file: what a kill can cost.", at_least=1)
    overwrite: bool = option(False, "Delete groups of an earlier run first.")
    inspect: bool = option(False, "Print the exact ids the policy and the reward model see of two prompts.")

    def __post_init__(self) -> None:
        """Check also what a list of stop strings holds.

        Raises:
            ConfigError: one that is no text.
        """
        super().__post_init__()
        check_stop(self.stop or ())

    def sampling(self) -> SamplingParams:
        """With what only draws that are looked at and chosen from may have."""
        return replace(
            super().sampling(), repetition_penalty=self.repetition_penalty, stop=tuple(self.stop or ())
        )
