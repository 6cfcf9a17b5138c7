"""Draw policy and reference on held-out prompts, measure how near the policy is to best-of-N, write the report."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.evaluate.context import report_context
from nonpareil.commands.evaluate.divergence import divergence
from nonpareil.commands.evaluate.dtypes import dtypes_of, products_dtype
from nonpareil.commands.evaluate.folders import check_loadable, check_places, evaluation_folder, group_folders
from nonpareil.commands.evaluate.rewards import load_rewards
from nonpareil.commands.evaluate.show import as_json, show
from nonpareil.commands.evaluate.temperature import measured_temperature
from nonpareil.commands.inputs import load_prompt_records, require_all
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
    from nonpareil.rewards import CombinedReward


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Write report.json, report.html and PNGs; returns the figures and the report's path.

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
    from nonpareil.commands.policies.local import local_policy
    from nonpareil.evaluation import best_of_n_report, evaluate_groups
    from nonpareil.evaluation.report import write_report

    products = products_dtype(options.dtype, options.kl_dtype)
    policy = local_policy(options)
    reference = local_policy(options, "reference_")
    temperature = measured_temperature(options.temperature, policy, reference)
    options = replace(options, temperature=temperature["measured"])
    prompts = _checked_prompts(options, reference, policy)
    dtypes = dtypes_of(policy, reference, products)
    own, shared = group_folders(options)
    if options.overwrite and not (is_vacant(own) and is_vacant(shared)):
        check_loadable(policy, reference)
    # The reference first: a shared folder of another evaluation is refused before anything is drawn.
    m, k = options.num_reference_samples, options.num_generations
    rewards = load_rewards(options, prompts, reference.tokenizer)
    theirs = _groups(options, prompts, rewards, reference, shared, m, is_reference=True)
    spread = RewardSpread()
    spread.add_all(group.rewards_by_name for group in theirs)
    spread.tell([name for reward in rewards for name in reward.names], str(shared))
    # As the reference read them, which may have been on another day, in a template that writes the date.
    read = [replace(p, token_ids=group.prompt_token_ids) for p, group in zip(prompts, theirs, strict=True)]
    ours = _groups(options, read, rewards, policy, own, k)
    kl, log_ratio, reference_log_ratio = divergence(options, (policy, reference), products, ours, theirs)
    evaluation = evaluate_groups(
        ours,
        theirs,
        policy_kl=kl,
        policy_log_ratio=log_ratio,
        reference_log_ratio=reference_log_ratio,
        n=targets_of(options.n, m, "num_reference_samples"),
        unseen_reward=rewards[0].names[0] if options.unseen_reward else None,
        seed=options.seed,
    )
    evaluation = replace(evaluation, dtype=dtypes["measured"])
    curve = best_of_n_report(theirs, seed=options.seed)
    context = report_context(options, policy, reference, len(prompts))
    report = write_report(
        evaluation,
        curve,
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


def _checked_prompts(
    options: EvaluateOptions, reference: "LocalPolicy", policy: "LocalPolicy"
) -> list[Prompt]:
    """The prompts of both sides; what cannot be drawn or compared is refused."""
    from nonpareil.commands.policies.local import check_same_endings

    for side in (policy, reference):
        side.check_drawable()
    prompts = _prompts_of_both(options, reference, policy)
    for side in (policy, reference):
        side.check(prompts, options.sampling())
    check_same_endings(policy, reference)
    return prompts


def _prompts_of_both(
    options: EvaluateOptions, reference: "LocalPolicy", policy: "LocalPolicy"
) -> list[Prompt]:
    """The prompts as the reference reads them. The KL compares token by token, so the policy must read the same."""
    now = datetime.now()  # for both: a chat template may write it
    prompts, theirs = (
        load_prompt_records(
            options,
            side.tokenizer,
            source=options.dataset_name or "",
            split=options.dataset_split,
            limit=options.max_prompts,
            now=now,
        )
        for side in (reference, policy)
    )
    for mine, other in zip(prompts, theirs, strict=True):
        if mine.token_ids != other.token_ids:
            raise ConfigError(
                f"model_name_or_path={options.model_name_or_path!r} and reference_model_name_or_path="
                f"{options.reference_model_name_or_path!r} tokenise prompt {mine.prompt_id} differently; "
                "a KL between them needs one tokenizer"
            )
    return prompts


def _groups(
    options: EvaluateOptions,
    prompts: Sequence[Prompt],
    rewards: "Sequence[CombinedReward]",
    source: "LocalPolicy",
    folder: Path,
    m: int,
    is_reference: bool = False,
) -> list[Group]:
    """Scored groups of one side, kept in a folder and taken up from there. A shared folder is never deleted."""
    from nonpareil.engines.decoding import TEXT
    from nonpareil.rollouts.manifest import check_same
    from nonpareil.rollouts.progress import ProgressBar
    from nonpareil.rollouts.run import draw_and_score

    # Reference and policy must not share their random numbers, or a policy near the reference would look paired.
    sampling = replace(options.sampling(), seed=options.seed * 2 + is_reference)
    with ProgressBar() as progress:
        for position, reward in enumerate(rewards):
            result = draw_and_score(
                prompts,
                lambda: source.engine(options.max_tokens_per_batch),
                reward,
                sampling,
                m,
                folder,
                model_info=source.info(),
                progress=progress,
                overwrite=options.overwrite
                and position == 0
                and not (is_reference and options.reference_dir is not None),
            )
    # Of an earlier version, and whole, it would be scored and compared though its texts are other ones.
    stored = result.manifest["draw"]["engine"]
    check_same({"engine": stored}, {"engine": {**stored, **TEXT}}, folder)
    for reward in rewards:
        reward.release()  # in memory while it scores, never beside the models that draw or are compared
    return result.groups()


COMMAND = Command(
    description=__doc__,
    example=(
        "nonpareil evaluate --model_name_or_path ./distilled --reference_model_name_or_path ./my-model \\\n"
        "      --dataset_name held-out.jsonl --reward_model_name_or_path ./my-reward-model"
    ),
    options=lambda: [EvaluateOptions],
    run=run,
    show=show,
    as_json=as_json,
)
