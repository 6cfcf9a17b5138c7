"""The options of `nonpareil search`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nonpareil.options.rewards import RewardOptions
from nonpareil.options.shared import WITH_SPLITS, FileOptions, ModelOptions, PromptOptions, SamplingOptions
from nonpareil.settings import option


@dataclass
class SearchOptions(ModelOptions, PromptOptions, RewardOptions, SamplingOptions, FileOptions):
    """Options of `nonpareil search`."""

    HEADING: ClassVar = "Output"

    model_name_or_path: str | None = option(
        None,
        "Model directory or hub name. Default: the embedded demo, if no prompts or rewards are named.",
        names="input",
        replaces_demo=True,
        heading="Policy",
    )
    dataset_split: str = option(
        "test", "Of a dataset that has splits.", reader=WITH_SPLITS, heading="Prompts"
    )
    max_prompts: int | None = option(None, "The first ones only.", at_least=1, heading="Prompts")
    strategy: str = option(
        "speculative_rejection",
        "best_of_n; speculative_rejection: the worst are given up while they are drawn; tree: and the best go "
        "on in several ways; blockwise: the best block, then blocks behind it.",
        choices=("best_of_n", "speculative_rejection", "tree", "blockwise"),
        heading="Search",
    )
    num_generations: int = option(
        16,
        "Completions begun per prompt; of blockwise, blocks drawn at a time.",
        at_least=2,
        why="there is nothing to choose from one",
        heading="Search",
    )
    score_at: list[int] | None = option(
        None,
        "Lengths, in tokens, at which unfinished completions are scored. Default: a quarter and a half of "
        "max_completion_length.",
        at_least=1,
        of="strategy=speculative_rejection|tree",
        heading="Search",
    )
    rejection_rate: float = option(
        0.5,
        "Share of the completions that is given up at each length.",
        at_least=0,
        below=1,
        of="strategy=speculative_rejection",
        heading="Search",
    )
    children: int = option(
        4,
        "Ways in which each that is kept goes on: one of so many is.",
        at_least=1,
        of="strategy=tree",
        heading="Search",
    )
    block_length: int = option(
        16, "Tokens of a block.", at_least=1, of="strategy=blockwise", heading="Search"
    )
    shard_size: int = option(
        16, "Prompts whose answers are kept at a time: what a kill can cost.", at_least=1
    )
    output: str = option("nonpareil-answers.jsonl", "The .jsonl or .parquet file to write.", path=True)
    overwrite: bool = option(
        False, "Replace the file that an earlier search wrote, and what one that was stopped kept for it."
    )

    def described(self) -> dict[str, Any]:
        """By name, what decides which answers a search finds, beside models, prompts and sampling."""
        read: dict[str, dict[str, Any]] = {
            "speculative_rejection": {"score_at": self.lengths, "rejection_rate": self.rejection_rate},
            "tree": {"score_at": self.lengths, "children": self.children},
            "blockwise": {"block_length": self.block_length},
        }
        return {
            "strategy": self.strategy,
            "num_generations": self.num_generations,
            **read.get(self.strategy, {}),
        }

    @property
    def lengths(self) -> list[int]:
        """Where unfinished completions are scored."""
        quarters = {max(1, self.max_completion_length // 4), max(1, self.max_completion_length // 2)}
        return self.score_at or sorted(length for length in quarters if length < self.max_completion_length)
