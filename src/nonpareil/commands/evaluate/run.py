"""Draw policy and reference on held-out prompts, measure how near the policy is to best-of-N, write the report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.evaluate.context import report_context
from nonpareil.commands.evaluate.divergence import divergence
from nonpareil.commands.evaluate.dtypes import dtypes_of, products_dtype
from nonpareil.commands.evaluate.folders import (
    check_loadable,
    check_places,
    evaluation_folder,
    policy_folder,
    report_folders,
)
from nonpareil.commands.evaluate.guided import guided_policy, guided_title, tell_other_reward, with_both_sides
from nonpareil.commands.evaluate.sides import Side, scored_groups, sides_of
from nonpareil.commands.evaluate.strengths import ascending, path_strengths
from nonpareil.commands.evaluate.temperature import measured_temperature
from nonpareil.commands.inputs import check_reward, load_reward, load_second_reward, require_all
from nonpareil.constant_rewards import RewardSpread
from nonpareil.errors import ConfigError
from nonpareil.folders import is_vacant
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.options.shared import WITH_SPLITS, targets_of
from nonpareil.options.unread import absent_rewards, absent_splits
from nonpareil.records import Group, Prompt
from nonpareil.settings import refuse_unread

if TYPE_CHECKING:
    import torch

    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.evaluation.evaluation import Evaluation
    from nonpareil.rewards.combine import CombinedReward


def run(options: EvaluateOptions, strength: float | None = None, *, inside: bool = False) -> dict[str, Any]:
    """Write report.json, report.html, PNGs and log_ratios.parquet; returns the `Evaluation` and the report's path.

    With `strengths` they lie in a folder for each, beside the whole path's, which is returned. `strength`, of a
    caller that evaluates a path point by point, is that of the one policy to evaluate. `inside`: output_dir lies in
    the policy's own folder, whose owner asks for it.

    Raises:
        NonpareilError: options, prompts, models or rewards that cannot work, before anything is drawn.
    """
    in_order = _check(with_both_sides(options))
    if not inside:
        check_places(options)
    return evaluate_in_place(in_order, strength)


def evaluate_in_place(
    options: EvaluateOptions, strength: float | None = None, *, fresh: bool = False
) -> dict[str, Any]:
    """As `run`, for a caller that has seen to it that no input is written over.

    `fresh`: the policy's draws have random numbers that no other evaluation has, for a policy that was chosen by
    its neighbours' draws on the same prompts.

    Raises:
        NonpareilError: as `run`.
    """
    with evaluation_folder(options):
        return _evaluate(options, strength, fresh)


@dataclass(frozen=True)
class Study:
    """What every policy of one evaluation shares: it is loaded, read and drawn once."""

    options: EvaluateOptions
    """With the temperature that is measured at."""
    prompts: list[Prompt]
    reference: Side
    products: "torch.dtype"
    context: dict[str, Any]
    """How it was measured, as reports say it."""
    rewards: "list[CombinedReward]"

    def prompts_as_in(self, theirs: Sequence[Group]) -> list[Prompt]:
        """As the reference read them, which may have been on another day, in a template that writes the date."""
        return [
            replace(prompt, token_ids=group.prompt_token_ids)
            for prompt, group in zip(self.prompts, theirs, strict=True)
        ]


def _evaluate(options: EvaluateOptions, strength: float | None, fresh: bool) -> dict[str, Any]:
    study, sides = prepared(options, strength, fresh=fresh)
    if options.strengths is None:
        title = guided_title(options)
        evaluation, report = _measure(study, sides[0], _reference_groups(study), title)
        return {"report": str(report), "evaluation": evaluation}
    return _measure_path(study, dict(zip(options.strengths, sides, strict=True)))


def prepared(
    options: EvaluateOptions, strength: float | None = None, *, fresh: bool = False
) -> tuple[Study, list[Side]]:
    """What is shared, and what draws at each strength, or the policy's own; all is checked and nothing drawn yet.

    Raises:
        NonpareilError: as `run`.
    """
    from nonpareil.commands.evaluate.prompts import prompts_of_both
    from nonpareil.commands.policies.interpolated import InterpolatedPolicy, check_strengths
    from nonpareil.commands.policies.local import local_policy, reference_policy

    products = products_dtype(options.dtype, options.kl_dtype)
    policy, reference = guided_policy(options, local_policy(options)), reference_policy(options)
    if options.strengths is not None or strength is not None:
        check_strengths(policy, reference)
    temperature = measured_temperature(options.temperature, policy, reference)
    options = replace(options, temperature=temperature["measured"])
    prompts = prompts_of_both(options, policy, reference)
    context = {"dtype": dtypes_of(policy, reference, products), "temperature": temperature}
    ours, theirs = sides_of(options, policy, reference, fresh=fresh)
    strengths = [strength] if options.strengths is None else options.strengths
    sides = [
        ours
        if each is None
        else replace(ours, policy=InterpolatedPolicy(policy, reference, each), folder=policy_folder(folder))
        for each, folder in zip(strengths, report_folders(options), strict=True)
    ]
    if options.overwrite and not all(is_vacant(side.folder) for side in (*sides, theirs)):
        check_loadable(sides[-1].policy, reference)
    rewards = _rewards(options, prompts, reference)
    tell_other_reward(options, rewards[-1])
    return Study(options, prompts, theirs, products, context, rewards), sides


def _measure_path(study: Study, sides: dict[float, Side]) -> dict[str, Any]:
    """The policy of every strength against the same groups of the reference, then the path through all of them."""
    from nonpareil.evaluation.groups import match_groups, rewards_of
    from nonpareil.evaluation.path_report import write_path
    from nonpareil.evaluation.strength_path import strength_path

    options, theirs = study.options, _reference_groups(study)
    found = {}
    for strength, side in sides.items():
        evaluation, report = _measure(study, side, theirs, f"{options.title} (strength {strength:g})")
        found[strength] = (evaluation, report.parent.name)
    ordered = match_groups(theirs, theirs).reference  # as an evaluation has its prompts
    path = strength_path(found, rewards_of(ordered), options.at_win_rates, options.seed)
    policy = next(iter(sides.values())).policy
    context = _context(study, policy) | {"strengths": list(sides)}
    page = write_path(path, options.output_dir, options.title, context)
    return {"report": str(page), "path": path}


def _measure(
    study: Study, side: Side, theirs: Sequence[Group], title: str | None = None
) -> "tuple[Evaluation, Path]":
    """One policy against the reference's groups: drawn, scored, compared, and its report written."""
    from nonpareil.evaluation import best_of_n_report, evaluate_groups
    from nonpareil.evaluation.log_ratios import write_log_ratios
    from nonpareil.evaluation.report import write_report

    options, rewards, reference = study.options, study.rewards, study.reference.policy
    ours = scored_groups(side, study.prompts_as_in(theirs), rewards, options.max_tokens_per_batch)
    measured = divergence(options, (side.policy, reference), study.products, ours, theirs)
    evaluation = evaluate_groups(
        ours,
        theirs,
        policy_kl=measured.kl,
        policy_log_ratio=measured.log_ratio,
        reference_log_ratio=measured.reference_log_ratio,
        n=targets_of(options.n, options.num_reference_samples, "num_reference_samples"),
        unseen_reward=rewards[0].names[0] if options.unseen_reward else None,
        reward_names=rewards[-1].names,
        seed=options.seed,
    )
    evaluation = replace(evaluation, dtype=study.context["dtype"]["measured"])
    write_log_ratios(side.folder.parent, theirs, measured.reference_log_ratio)
    report = write_report(
        evaluation,
        best_of_n_report(theirs, seed=options.seed),
        ours,
        theirs,
        side.folder.parent,
        title or options.title,
        _context(study, side.policy),
        seed=options.seed,
    )
    return evaluation, report


def _context(study: Study, policy: "LocalPolicy") -> dict[str, Any]:
    shared = report_context(study.options, policy, study.reference.policy, len(study.prompts))
    return {**study.context, **shared}


def _check(options: EvaluateOptions) -> EvaluateOptions:
    """What can be refused before anything is read; the options, strengths and win rates in order."""
    require_all(options)
    if options.reference_model_name_or_path is None:
        raise ConfigError(
            "reference_model_name_or_path is missing; name the model that the policy was before it was trained"
        )
    targets_of(options.n, options.num_reference_samples, "num_reference_samples")
    splits = absent_splits({WITH_SPLITS: options.prompt_source or ""})
    refuse_unread(options, absent_rewards(options, options.unseen_reward) | splits)
    if options.strengths is None:
        return options
    rates = ascending("at_win_rates", options.at_win_rates)
    return replace(options, strengths=path_strengths(options.strengths), at_win_rates=rates)


def _rewards(
    options: EvaluateOptions, prompts: Sequence[Prompt], reference: "LocalPolicy"
) -> "list[CombinedReward]":
    """The unseen reward, where there is one, then the reward; both can score the prompts, and none is in memory."""
    rewards = [load_reward(options, reference.tokenizer, prompts, options.max_completion_length)]
    if options.unseen_reward:
        rewards.insert(0, load_second_reward("unseen_reward", options.unseen_reward, options, rewards[0]))
    for reward in rewards:
        check_reward(
            reward, prompts, options.max_completion_length, reference.tokenizer, errors_in=options.output_dir
        )
    return rewards


def _reference_groups(study: Study) -> list[Group]:
    """Before the policy's: a shared folder of another evaluation is refused before anything is drawn."""
    side, rewards = study.reference, study.rewards
    theirs = scored_groups(side, study.prompts, rewards, study.options.max_tokens_per_batch)
    spread = RewardSpread()
    spread.add_all(group.rewards_by_name for group in theirs)
    spread.tell([name for reward in rewards for name in reward.names], str(side.folder))
    return theirs
