"""Draw policy and reference on held-out prompts, measure how near the policy is to best-of-N, write the report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.evaluate.context import report_context
from nonpareil.commands.evaluate.divergence import divergence
from nonpareil.commands.evaluate.dtypes import dtypes_of, products_dtype
from nonpareil.commands.evaluate.folders import check_loadable, check_places, evaluation_folder
from nonpareil.commands.evaluate.sides import Side, scored_groups, sides_of
from nonpareil.commands.evaluate.temperature import measured_temperature
from nonpareil.commands.inputs import check_reward, load_reward, load_second_reward, require_all
from nonpareil.constant_rewards import RewardSpread
from nonpareil.errors import ConfigError
from nonpareil.folders import is_vacant
from nonpareil.options.commands import EvaluateOptions
from nonpareil.options.rewards import refuse_judge
from nonpareil.options.shared import WITH_SPLITS, targets_of
from nonpareil.options.unread import absent_rewards, absent_splits
from nonpareil.records import Group, Prompt
from nonpareil.settings import refuse_unread

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.rewards.combine import CombinedReward


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Write report.json, report.html, PNGs and log_ratios.parquet; returns the `Evaluation` and the report's path.

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn.
    """
    _check(options)
    check_places(options)
    return evaluate_in_place(options)


def evaluate_in_place(options: EvaluateOptions) -> dict[str, Any]:
    """As `run`, for a caller that has seen to it that no input is written over.

    Raises:
        NonpareilError: as `run`.
    """
    with evaluation_folder(options):
        return _evaluate(options)


def _evaluate(options: EvaluateOptions) -> dict[str, Any]:
    from nonpareil.commands.evaluate.prompts import prompts_of_both
    from nonpareil.commands.policies.local import local_policy, reference_policy
    from nonpareil.evaluation import best_of_n_report, evaluate_groups
    from nonpareil.evaluation.log_ratios import write_log_ratios
    from nonpareil.evaluation.report import write_report

    products = products_dtype(options.dtype, options.kl_dtype)
    policy, reference = local_policy(options), reference_policy(options)
    temperature = measured_temperature(options.temperature, policy, reference)
    options = replace(options, temperature=temperature["measured"])
    prompts = prompts_of_both(options, policy, reference)
    dtypes = dtypes_of(policy, reference, products)
    sides = sides_of(options, policy, reference)
    if options.overwrite and not all(is_vacant(side.folder) for side in sides):
        check_loadable(policy, reference)
    rewards = _rewards(options, prompts, reference)
    ours, theirs = _groups_of_both(sides, prompts, rewards, options.max_tokens_per_batch)
    measured = divergence(options, (policy, reference), products, ours, theirs)
    evaluation = evaluate_groups(
        ours,
        theirs,
        policy_kl=measured.kl,
        policy_log_ratio=measured.log_ratio,
        reference_log_ratio=measured.reference_log_ratio,
        n=targets_of(options.n, options.num_reference_samples, "num_reference_samples"),
        unseen_reward=rewards[0].names[0] if options.unseen_reward else None,
        seed=options.seed,
    )
    evaluation = replace(evaluation, dtype=dtypes["measured"])
    write_log_ratios(Path(options.output_dir), theirs, measured.reference_log_ratio)
    context = report_context(options, policy, reference, len(prompts))
    report = write_report(
        evaluation,
        best_of_n_report(theirs, seed=options.seed),
        ours,
        theirs,
        options.output_dir,
        options.title,
        {"dtype": dtypes, "temperature": temperature, **context},
        seed=options.seed,
    )
    return {"report": str(report), "evaluation": evaluation}


def _check(options: EvaluateOptions) -> None:
    """What can be refused before anything is read."""
    require_all(options)
    refuse_judge(options, "evaluate compares the rewards of two policies")
    if options.reference_model_name_or_path is None:
        raise ConfigError(
            "reference_model_name_or_path is missing; name the model that the policy was before it was trained"
        )
    targets_of(options.n, options.num_reference_samples, "num_reference_samples")
    splits = absent_splits({WITH_SPLITS: options.dataset_name or ""})
    refuse_unread(options, absent_rewards(options, options.unseen_reward) | splits)


def _rewards(
    options: EvaluateOptions, prompts: Sequence[Prompt], reference: "LocalPolicy"
) -> "list[CombinedReward]":
    """The unseen reward, where there is one, then the reward; both can score the prompts, and none is in memory."""
    rewards = [load_reward(options, reference.tokenizer)]
    if options.unseen_reward:
        rewards.insert(0, load_second_reward("unseen_reward", options.unseen_reward, options, rewards[0]))
    for reward in rewards:
        check_reward(
            reward, prompts, options.max_completion_length, reference.tokenizer, errors_in=options.output_dir
        )
    return rewards


def _groups_of_both(
    sides: tuple[Side, Side],
    prompts: Sequence[Prompt],
    rewards: "Sequence[CombinedReward]",
    max_tokens_per_batch: int,
) -> tuple[list[Group], list[Group]]:
    """The policy's groups and the reference's."""
    policy, reference = sides
    # The reference first: a shared folder of another evaluation is refused before anything is drawn.
    theirs = scored_groups(reference, prompts, rewards, max_tokens_per_batch)
    spread = RewardSpread()
    spread.add_all(group.rewards_by_name for group in theirs)
    spread.tell([name for reward in rewards for name in reward.names], str(reference.folder))
    # As the reference read them, which may have been on another day, in a template that writes the date.
    read = [replace(p, token_ids=group.prompt_token_ids) for p, group in zip(prompts, theirs, strict=True)]
    return scored_groups(policy, read, rewards, max_tokens_per_batch), theirs
