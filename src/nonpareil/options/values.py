"""The options of values and credits, read without importing torch."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.options.shared import DRAWS_POOL, FileOptions, ModelOptions
from nonpareil.setting_types import SEED
from nonpareil.settings import CheckedOptions, option
from nonpareil.values.settings import MAKES_CREDITS, CreditSettings, FitSettings


@dataclass
class ValueGroupsOptions(ModelOptions, FileOptions):
    """Stored groups and the policy that drew them."""

    HEADING: ClassVar = "Groups"

    groups: str | None = option(None, "A folder of `nonpareil sample`, scored.", names="input")
    model_name_or_path: str | None = option(
        None, "The policy that drew them. Default: where it was then.", names="input", heading="Policy"
    )


@dataclass
class ValueOptions(ValueGroupsOptions, FitSettings):
    """Options of `nonpareil value`."""

    HEADING: ClassVar = "Output"

    init_model_name_or_path: str | None = option(
        None,
        "What the value's network begins as: a causal model or reward model with the policy's tokens. Default: the "
        "groups' reward model where it is one, else the policy.",
        names="input",
        heading="Fit",
    )
    output_dir: str = option("nonpareil-value", "Where the value and its report go.", path=True)
    overwrite: bool = option(False, "Delete the value of an earlier run first.")


@dataclass
class CreditsOptions(ValueGroupsOptions, CreditSettings):
    """Options of `nonpareil credits`."""

    HEADING: ClassVar = "Output"

    value: str | None = option(
        None,
        "A folder that `nonpareil value` wrote, or a function that makes a value: file.py:function.",
        names="input",
        heading="Credits",
    )
    max_prompts: int | None = option(None, "The first ones only.", at_least=1, heading="Groups")
    max_tokens_per_batch: int = option(
        4096, "Tokens and candidates of one forward pass; bounds memory.", at_least=1, heading="Credits"
    )
    seed: int = option(
        0, "Of the choice of completions and candidates.", at_least=0, at_most=SEED, heading="Credits"
    )
    output_dir: str = option("nonpareil-credits", "Where they go; run again to go on.", path=True)


@dataclass
class MadeCreditsOptions(CreditSettings, CheckedOptions):
    """The credits that a distillation makes where none are given, and the groups that it draws for them."""

    HEADING: ClassVar = "Credits"

    num_generations_pool: int = option(
        16,
        "Completions per training prompt, where a method reads credits and no groups are given: they are drawn "
        "first, into output_dir/groups.",
        at_least=2,
        why="best-of-N compares draws of one prompt",
        reader=DRAWS_POOL,
        compare="groups.num_generations sets it",
        heading="Prompts",
    )
    value: str | None = option(
        None,
        "What to make credits of: a folder of `nonpareil value`, or file.py:function. Default: one fitted on the "
        "groups, in output_dir/value.",
        names="input",
        reader=MAKES_CREDITS,
        compare="it is of groups that are there already, and a comparison draws its own",
    )
