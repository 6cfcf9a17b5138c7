"""Stored groups that a distillation draws before it trains, into output_dir/groups, as `nonpareil sample` does."""

import time
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.distill.inputs import reward_options
from nonpareil.commands.distill.spent import POOL, add_to_pool
from nonpareil.errors import DataError
from nonpareil.options.distill import DistillOptions
from nonpareil.options.rewards import RewardOptions
from nonpareil.options.sample import SampleOptions
from nonpareil.options.shared import PromptOptions
from nonpareil.records import Prompt
from nonpareil.settings import values_of
from nonpareil.terminal import tell
from nonpareil.values.settings import CreditSettings

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


def check_pool(
    options: DistillOptions,
    config: "DistillationConfig",
    policy: "LocalPolicy",
    prompts: Sequence[Prompt],
    reward: "CombinedReward | None" = None,
) -> None:
    """Refuse, before anything is drawn, what the groups, their value or their credits would be refused for later.

    Raises:
        ConfigError: a value of another policy, temperature or reward, more candidates than there are tokens, or
            groups of a size that the reward cannot score.
        DataError: too few prompts to fit a value, or no value where one is named.
    """
    from nonpareil.commands.credits import check_candidates
    from nonpareil.commands.value.named import check_named
    from nonpareil.files import jsonable
    from nonpareil.values.examples import FEWEST_PROMPTS

    if len(prompts) < FEWEST_PROMPTS:
        raise DataError(
            f"{len(prompts)} training prompts; a value needs {FEWEST_PROMPTS} at the very least, and a useful one "
            "hundreds, so give more prompts (dataset_name, max_train_prompts)"
        )
    if options.value is not None:
        described = None if reward is None else jsonable(reward.describe())
        check_named(options.value, policy, config.temperature, described)
    check_candidates(policy, CreditSettings(**values_of(options, CreditSettings)))
    if reward is not None:
        reward.check_group_size(options.num_generations_pool)


def draw_pool(options: DistillOptions, config: "DistillationConfig", *, resumed: bool) -> DistillOptions:
    """Draw and score what is missing of the groups; returns the options with them. What is there is kept.

    Raises:
        NonpareilError: as `nonpareil sample`, such as groups there that were drawn with other settings.
    """
    from nonpareil.commands import sample

    asked = _sample_options(options, config, overwrite=options.overwrite and not resumed)
    begun = time.perf_counter()
    try:
        result = sample.run(asked)
    except KeyboardInterrupt:
        _add_seconds(asked, begun)
        raise
    if result["shards_drawn"] or result["shards_scored"]:
        _add_seconds(asked, begun)
    sample.show_failed(result)
    tell(
        f"{result['prompts']} groups of {asked.num_generations} in {asked.output_dir}"
        + (f", {result['shards_drawn']} files of them drawn now" if result["shards_drawn"] else "")
    )
    return with_groups(options, asked.output_dir)


def _add_seconds(asked: SampleOptions, begun: float) -> None:
    from nonpareil.rollouts.folder import MANIFEST

    if (Path(asked.output_dir) / MANIFEST).is_file():  # else the folder must stay fit to draw into
        add_to_pool(Path(asked.output_dir), time.perf_counter() - begun, anew=asked.overwrite)


def with_groups(options: DistillOptions, groups: str) -> DistillOptions:
    """The same options as if these groups had been given."""
    given = copy(options)
    given.groups = groups
    return given


def cost_of_pool(
    options: DistillOptions, config: "DistillationConfig", prompts: int
) -> dict[str, dict[str, int]]:
    """What is drawn, then fitted and credited; completions are taken to be as long as they can be."""
    each, settings = options.num_generations_pool, CreditSettings(**values_of(options, CreditSettings))
    credited = prompts * min(each, settings.credited_completions)
    return {
        "groups": {"prompts": prompts, "completions": prompts * each},
        "credits": {
            "fitted_completions": 0 if options.value is not None else prompts * each,
            "completions": credited,
            "candidates": credited * config.max_completion_length * settings.candidates,
        },
    }


def _sample_options(
    options: DistillOptions, config: "DistillationConfig", *, overwrite: bool
) -> SampleOptions:
    """As `nonpareil sample` is to draw what this training learns from, in what the training computes in."""
    import torch

    from nonpareil.models.devices import dtype_name

    prompts: dict[str, Any] = values_of(options, PromptOptions)
    return SampleOptions(
        **prompts,
        **values_of(reward_options(options, config), RewardOptions),
        model_name_or_path=options.model_name_or_path,
        model_revision=options.model_revision,
        dtype=dtype_name(config.compute_dtype(torch.float32)),
        dataset_split=options.dataset_train_split,
        max_prompts=options.max_train_prompts,
        num_generations=options.num_generations_pool,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        seed=config.seed,
        max_tokens_per_batch=config.max_tokens_per_batch,
        output_dir=str(Path(str(config.output_dir)) / POOL),
        overwrite=overwrite,
    )
