"""Draw policy and reference on held-out prompts, measure how near the policy is to best-of-N, write the report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.constant_rewards import RewardSpread
from nonpareil.errors import ConfigError
from nonpareil.folders import is_vacant
from nonpareil.jobs.evaluation_context import report_context
from nonpareil.jobs.evaluation_dtypes import dtypes_of, products_dtype
from nonpareil.jobs.evaluation_folders import check_loadable, check_places, evaluation_folder, group_folders
from nonpareil.jobs.evaluation_rewards import load_rewards
from nonpareil.jobs.evaluation_temperature import measured_temperature
from nonpareil.jobs.options import (
    FileOptions,
    ModelOptions,
    PromptOptions,
    RewardOptions,
    SamplingOptions,
    load_prompt_records,
    require_all,
    targets_of,
)
from nonpareil.jobs.remote_rewards import refuse_judge
from nonpareil.jobs.unread import refuse_unread_of_files, refuse_unread_of_rewards
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.settings import DTYPES, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nonpareil.jobs.policy import PolicySource
    from nonpareil.rewards import CombinedReward


@dataclass
class EvaluateOptions(ModelOptions, PromptOptions, RewardOptions, SamplingOptions, FileOptions):
    """Options of `nonpareil evaluate`."""

    reference_model_name_or_path: str | None = option(
        None, "What the policy was before. Default: the embedded demo's policy, in the demo."
    )
    reference_model_revision: str | None = option(None, "Branch, tag or commit.")
    dataset_split: str = option("test", "Of a dataset that has splits.")
    max_prompts: int | None = option(None, "The first ones only.", at_least=1)
    temperature: float | None = option(  # type: ignore[assignment]  # a number once the policy is known
        None,
        "Divides the logits of both models. Default: what the policy was trained at, as its folder says, else 1.",
        above=0,
        why="best-of-N needs draws that differ",
    )
    num_generations: int = option(8, "Completions of the policy a prompt.", at_least=2)
    num_reference_samples: int = option(16, "Completions of the reference a prompt, M.", at_least=2)
    n: list[int] | None = option(
        None,
        "The N whose best-of-N is compared with. Default: those of 2, 4, 8 and 16 up to num_reference_samples.",
        at_least=2,
        why="best-of-1 is the reference itself",
    )
    unseen_reward: str | None = option(
        None, "A second reward, not trained on: a model, read by its own tokenizer as is, or a function."
    )
    kl_dtype: str = option(
        "float32",
        "What the KL's passes multiply in, the weights being dtype's: float32, or auto for dtype itself, which "
        "halves memory and adds noise.",
        choices=DTYPES,
    )
    output_dir: str = option("nonpareil-evaluation", "Where groups and report go.", path=True)
    reference_dir: str | None = option(
        None, "The reference's groups, shared by evaluations. Default: <output_dir>/reference.", path=True
    )
    title: str = option("How near to best-of-N?", "The report's heading.")
    overwrite: bool = option(False, "Delete the groups that an earlier evaluation wrote in output_dir first.")


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
    from nonpareil.evaluation import best_of_n_report, evaluate_groups
    from nonpareil.evaluation.report import write_report
    from nonpareil.jobs.policy import policy_source

    products = products_dtype(options.dtype, options.kl_dtype)
    policy = policy_source(options)
    reference = policy_source(options, "reference_")
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
    kl, log_ratio, reference_log_ratio = _divergence(options, (policy, reference), products, ours, theirs)
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
    if not SamplingParams(
        top_p=options.top_p, top_k=options.top_k, min_p=options.min_p
    ).keeps_whole_vocabulary:
        raise ConfigError(
            "top_p, top_k and min_p draw from a part of the vocabulary; the KL would be that of another policy. "
            "Evaluate without them"
        )
    refuse_unread_of_rewards(options, options.unseen_reward, options.reward_timeout)
    refuse_unread_of_files(options, {"dataset_split": options.dataset_name or ""})


def _checked_prompts(
    options: EvaluateOptions, reference: "PolicySource", policy: "PolicySource"
) -> list[Prompt]:
    """The prompts of both sides; what cannot be drawn or compared is refused."""
    from nonpareil.jobs.policy import check_same_endings

    for side in (policy, reference):
        side.check_drawable()
    prompts = _prompts_of_both(options, reference, policy)
    for side in (policy, reference):
        side.check(prompts, options.sampling())
    check_same_endings(policy, reference)
    return prompts


def _prompts_of_both(
    options: EvaluateOptions, reference: "PolicySource", policy: "PolicySource"
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
    source: "PolicySource",
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


def _divergence(
    options: EvaluateOptions,
    sides: "tuple[PolicySource, PolicySource]",
    products: "torch.dtype",
    ours: Sequence[Group],
    theirs: Sequence[Group],
) -> "tuple[Tensor, Tensor, Tensor]":
    """Exact per-token KL and log-ratio on the policy's completions, and log-ratio on the reference's.

    Of the very weights that drew, multiplied in `products`.
    """
    import torch

    from nonpareil.engines.load_check import check_scoring
    from nonpareil.models.logprobs import TokenSequences, completion_divergence, token_budget_batches
    from nonpareil.rollouts.progress import ProgressBar

    policy, reference = (side.load(products) for side in sides)
    temperature = options.sampling().temperature
    for model in (policy, reference):  # drawn from in this run, or in an earlier one of another version
        check_scoring(model)

    def measure(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = TokenSequences(
            [group.prompt_token_ids for group in groups for _ in group.completion_token_ids],
            [ids for group in groups for ids in group.completion_token_ids],
        )
        kl, ratio = torch.empty(len(sequences)), torch.empty(len(sequences))
        lengths = sequences.lengths()
        for rows in token_budget_batches(lengths, options.max_tokens_per_batch):
            values = completion_divergence(policy, reference, sequences.select(rows), temperature)
            kl[rows], ratio[rows] = values[0].cpu(), values[1].cpu()
            progress.update(len(rows), sum(lengths[row] for row in rows))
        return kl.view(len(groups), -1), ratio.view(len(groups), -1)

    with ProgressBar() as progress:
        total = sum(len(group) for side in (ours, theirs) for group in side)
        progress.start("compare", total, unit="completions")
        kl, log_ratio = measure(ours)
        return kl, log_ratio, measure(theirs)[1]
