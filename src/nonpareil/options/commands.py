"""The options of each command. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.engines import EngineOptions
from nonpareil.options.guidance import GuidanceOptions
from nonpareil.options.rewards import RewardInputOptions, RewardOptions
from nonpareil.options.shared import (
    HELD_OUT_SPLITS,
    TRAINING_SPLITS,
    WITH_SPLITS,
    FileOptions,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
)
from nonpareil.options.strengths import AskedStrengthOptions
from nonpareil.options.values import MadeCreditsOptions
from nonpareil.setting_types import SEED
from nonpareil.settings import DTYPES, option

CUT = "draws from a part of the vocabulary; the KL would be that of another policy. Evaluate without it"
AT_THE_TOP = "set it at the top, for all"
"""Where a comparison's file has what it gives to all runs alike."""


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
    shard_size: int = option(64, "Prompts per file: what a kill can cost.", at_least=1)
    overwrite: bool = option(False, "Delete groups of an earlier run first.")
    inspect: bool = option(False, "Print the exact ids the policy and the reward model see of two prompts.")


@dataclass
class EvaluateOptions(
    ModelOptions, PromptOptions, RewardOptions, SamplingOptions, GuidanceOptions, FileOptions
):
    """Options of `nonpareil evaluate`."""

    HEADING: ClassVar = "Evaluation"

    reference_model_name_or_path: str | None = option(
        None, "What the policy was before.", names="input", heading="Policy"
    )
    reference_model_revision: str | None = option(None, "Branch, tag or commit.", heading="Policy")
    dataset_split: str = option(
        "test", "Of a dataset that has splits.", reader=WITH_SPLITS, heading="Prompts"
    )
    max_prompts: int | None = option(None, "The first ones only.", at_least=1, heading="Prompts")
    temperature: float | None = option(  # type: ignore[assignment]  # a number once the policy is known
        None,
        "Divides the logits of both models. Default: what the policy was trained at, as its folder says, else 1.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    top_p: float = option(1.0, "Refused below 1.", above=0, at_most=1, refused=CUT)
    top_k: int = option(0, "Refused above 0.", at_least=0, refused=CUT)
    min_p: float = option(0.0, "Refused above 0.", at_least=0, below=1, refused=CUT)
    num_generations: int = option(8, "Completions of the policy per prompt.", at_least=2, heading="Drawing")
    num_reference_samples: int = option(
        16, "Completions of the reference per prompt, M.", at_least=2, heading="Drawing"
    )
    n: list[int] | None = option(  # type: ignore[assignment]  # several, where no value guides
        None,
        "The N whose best-of-N is compared with. Default: those of 2, 4, 8 and 16 up to num_reference_samples. "
        "With a value the one that it guides towards.",
        at_least=2,
        why="best-of-1 is the reference itself",
        heading="Evaluation",
    )
    unseen_reward: str | None = option(
        None,
        "A second reward, not trained on: a model, read by its own tokenizer as is, or a function.",
        names="reward",
        heading="Rewards",
    )
    kl_dtype: str = option(
        "float32",
        "What the KL's passes multiply in, the weights being dtype's: float32, or auto for dtype itself, which "
        "halves memory and adds noise.",
        choices=DTYPES,
    )
    strengths: list[float] | None = option(
        None,
        "Evaluate the path from the reference through the policy: its weights at these strengths (0 is the "
        "reference, 1 the policy, more is beyond it), each drawn and scored as one. Default: the policy alone.",
        at_least=0,
    )
    at_win_rates: list[float] = option(
        [0.6, 0.7, 0.8],
        "Say at which strength and KL the path reaches these win rates.",
        above=0.5,
        below=1,
        why="the reference's own is .5, and no finite KL is sure to reach 1",
        of="strengths",
    )
    output_dir: str = option(
        "nonpareil-evaluation", "Where groups and report go.", path=True, heading="Output"
    )
    reference_dir: str | None = option(
        None,
        "The reference's groups, shared by evaluations. Default: <output_dir>/reference.",
        path=True,
        heading="Output",
    )
    title: str = option("How near to best-of-N?", "The report's heading.", heading="Output")
    overwrite: bool = option(
        False, "Delete the groups that an earlier evaluation wrote in output_dir first.", heading="Output"
    )


@dataclass
class DistillOptions(
    PromptOptions, RewardInputOptions, MadeCreditsOptions, AskedStrengthOptions, FileOptions
):
    """Options of `nonpareil distill`, besides those of `DistillationConfig`."""

    HEADING: ClassVar = "Evaluation"

    model_name_or_path: str | None = option(
        None,
        "The policy to train, also the reference. Default: the embedded demo, if no prompts or rewards are named.",
        names="input",
        replaces_demo=True,
        heading="Policy",
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a hub model.", heading="Policy")
    dataset_train_split: str = option(
        "train", "Prompts to train on.", reader=TRAINING_SPLITS, heading="Prompts"
    )
    dataset_test_split: str = option(
        "test", "Held-out prompts to evaluate on.", reader=HELD_OUT_SPLITS, compare=AT_THE_TOP
    )
    eval_dataset_name: str | None = option(
        None, "Held-out prompts, where dataset_name has no test split.", names="input", compare=AT_THE_TOP
    )
    max_train_prompts: int | None = option(None, "The first ones only.", at_least=1, heading="Prompts")
    max_eval_prompts: int | None = option(256, "The first ones only.", at_least=1, compare=AT_THE_TOP)
    evaluate_after: bool = option(
        True, "Measure win rate and KL against the reference after training.", compare="remove it"
    )
    num_generations_eval: int = option(
        8,
        "Completions of the policy per held-out prompt.",
        at_least=2,
        compare="evaluation.num_generations sets it",
    )
    num_reference_samples_eval: int = option(
        16,
        "Completions of the reference, M.",
        at_least=2,
        compare="evaluation.num_reference_samples sets it",
    )
    unseen_reward: str | None = option(
        None,
        "A second reward to evaluate with: a model or a function.",
        names="reward",
        of="evaluate_after",
        compare="gold_reward at the top is evaluated for all runs",
    )
    kl_dtype: str = option(
        "float32",
        "What the KL's passes multiply in: float32, or auto (what training computes in; faster, noisier).",
        choices=DTYPES,
        compare="evaluation.kl_dtype sets it",
    )
    groups: str | None = option(
        None,
        "Stored groups to train on: a folder of `nonpareil sample`; for vbon also its JSON lines of cached "
        "rewards. The training prompts are then theirs.",
        names="input",
        compare="say stored: true to learn from the shared groups",
        heading="Prompts",
    )
    credits: str | None = option(
        None,
        "A folder of credits: what other next tokens would have been worth in the groups, where a method reads it. "
        "Default: they are made of a value, in output_dir/credits.",
        names="input",
        compare="leave it out: credits are of groups that are there already, and a comparison draws its own",
        heading="Prompts",
    )
    merge: bool = option(
        False,
        "With use_peft: also write the base with the adapter merged in, to output_dir/merged.",
        heading="Output",
    )
    dry_run: bool = option(
        False,
        "Resolve settings, model class, prompts and memory; train nothing.",
        compare="remove it",
        heading="Output",
    )
    overwrite: bool = option(
        False,
        "Delete what an earlier run wrote in output_dir first, and nothing else.",
        compare="remove it",
        heading="Output",
    )


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


@dataclass
class ExportOptions(FileOptions):
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
    truncated: str = option(
        "allow", "allow, or exclude completions that were cut.", choices=("allow", "exclude")
    )
    overwrite: bool = option(False, "Replace the file that an earlier export wrote.")
