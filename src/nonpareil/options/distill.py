"""The options of `nonpareil distill`. Plain dataclasses, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.rewards import RewardInputOptions
from nonpareil.options.shared import HELD_OUT_SPLITS, TRAINING_SPLITS, FileOptions, PromptOptions
from nonpareil.options.strengths import AskedStrengthOptions
from nonpareil.options.values import MadeCreditsOptions
from nonpareil.settings import DTYPES, option

AT_THE_TOP = "set it at the top, for all"
"""Where a comparison's file has what it gives to all runs alike."""


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
        "Try settings, prompts, rewards and the hub's token, tell memory and hours; train nothing.",
        compare="remove it",
        heading="Output",
    )
    overwrite: bool = option(
        False,
        "Delete what an earlier run wrote in output_dir first, and nothing else.",
        compare="remove it",
        heading="Output",
    )
