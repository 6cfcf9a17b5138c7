"""Distil best-of-N into the policy, save it as a plain Hugging Face checkpoint, and evaluate it."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.folders import held_folder
from nonpareil.jobs import evaluate
from nonpareil.jobs.card import write_model_card
from nonpareil.jobs.distill_folder import distillation_folder, start_anew
from nonpareil.jobs.evaluate import EvaluateOptions
from nonpareil.jobs.evaluation_dtypes import training_dtype
from nonpareil.jobs.evaluation_rewards import check_rewards
from nonpareil.jobs.options import (
    FileOptions,
    PromptOptions,
    RewardInputOptions,
    load_prompt_records,
    load_reward,
    require_all,
    template_kwargs,
)
from nonpareil.jobs.remote_rewards import refuse_judge
from nonpareil.jobs.unread import refuse_unread_of_distill
from nonpareil.records import Group, Prompt, prompt_of
from nonpareil.settings import DTYPES, option

if TYPE_CHECKING:
    from nonpareil.jobs.policy import PolicySource
    from nonpareil.methods.base import Method
    from nonpareil.rewards import CombinedReward
    from nonpareil.training.config import DistillationConfig
    from nonpareil.training.trainer import DistillationTrainer


@dataclass
class DistillOptions(PromptOptions, RewardInputOptions, FileOptions):
    """Options of `nonpareil distill`, besides those of `DistillationConfig`."""

    model_name_or_path: str | None = option(
        None, "The policy to train, also the reference. Default: the embedded demo."
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    dataset_train_split: str = option("train", "Prompts to train on.")
    dataset_test_split: str = option("test", "Held-out prompts to evaluate on.")
    eval_dataset_name: str | None = option(None, "Held-out prompts, where dataset_name has no test split.")
    max_train_prompts: int | None = option(None, "The first ones only.", at_least=1)
    max_eval_prompts: int | None = option(256, "The first ones only.", at_least=1)
    evaluate_after: bool = option(True, "Measure win rate and KL against the reference after training.")
    num_generations_eval: int = option(8, "Completions of the policy a held-out prompt.", at_least=2)
    num_reference_samples_eval: int = option(16, "Completions of the reference, M.", at_least=2)
    unseen_reward: str | None = option(None, "A second reward to evaluate with: a model or a function.")
    kl_dtype: str = option(
        "float32",
        "What the KL's passes multiply in: float32, or auto (what training computes in; faster, noisier).",
        choices=DTYPES,
    )
    groups: str | None = option(
        None,
        "Stored groups to train on: a folder of `nonpareil sample`; for vbon also its JSON lines of cached "
        "rewards. The training prompts are then theirs.",
    )
    merge: bool = option(
        False, "With use_peft: also write the base with the adapter merged in, to output_dir/merged."
    )
    dry_run: bool = option(False, "Resolve settings, model class, prompts and memory; train nothing.")
    overwrite: bool = option(False, "Delete what an earlier run wrote in output_dir first, and nothing else.")


def run(options: DistillOptions, config: "DistillationConfig") -> dict[str, Any]:
    """Train, save, evaluate; returns the figures and where everything lies.

    `interrupted` is True after Ctrl-C; a checkpoint was saved then, and nothing was evaluated.

    Of several processes the first one evaluates; the others end after training, with nothing to return.

    Raises:
        NonpareilError: whatever cannot work, before any model is loaded where that can be known.
    """
    from nonpareil.training.method import method_of

    method = method_of(config, stored=options.groups is not None)
    check(options, config)
    eval_source = _eval_source(options)
    if options.dry_run:
        return _dry_run(options, config, method)
    evaluation = _evaluation(options, config, eval_source) if options.evaluate_after else None
    with distillation_folder(options, config, evaluation):
        return _distill(options, config, method, eval_source, evaluation)


def _distill(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    eval_source: str,
    evaluation: EvaluateOptions | None,
) -> dict[str, Any]:
    """What follows once the folder is ours."""
    from nonpareil.models.distributed import end_processes, first_process_first
    from nonpareil.models.memory import free_memory
    from nonpareil.models.merged_folder import save_merged
    from nonpareil.training.resume import checkpoint_to_resume

    output_dir = Path(str(config.output_dir))
    checkpoint = checkpoint_to_resume(config.resume_from_checkpoint, output_dir)
    trainer = _trainer(options, config, method, eval_source, checkpoint)
    if checkpoint is None:
        first_process_first(partial(start_anew, output_dir))  # all that can be refused was
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        trainer.release()
    result: dict[str, Any] = {"output_dir": str(output_dir), "steps": trainer.state.global_step}
    interrupted = trainer.stopper.stopped and trainer.state.global_step < trainer.state.max_steps
    if not interrupted:
        trainer.save_finished()
    del trainer
    free_memory()  # a trainer and its callbacks hold each other, and models with them
    if not end_processes():
        return {}
    if interrupted:
        return {**result, "interrupted": True}
    if options.merge:
        target = output_dir / "merged"
        folder = held_folder(target)
        with folder.staged("merged") if folder else nullcontext(target) as staging:
            save_merged(output_dir, staging, trust_remote_code=config.trust_remote_code)
        result["merged"] = str(target)
    evaluated = None
    if evaluation is not None:
        evaluated = evaluate.evaluate_in_place(evaluation)
        result |= evaluated
    write_model_card(
        output_dir, options, config, method, result["steps"], evaluated["evaluation"] if evaluated else None
    )
    return {**result, "interrupted": False}


def check(options: DistillOptions, config: "DistillationConfig") -> None:
    """What can be refused before anything is read.

    Raises:
        ConfigError: an option that is missing, that nothing would read, or that goes with no other.
    """
    require_all(options, prompts_from_groups=options.groups is not None)
    if options.evaluate_after:
        refuse_judge(options, "distill evaluates the policy against its reference; give evaluate_after=false")
    if options.merge and not config.use_peft:
        raise ConfigError("merge=true without use_peft: there is no adapter to merge; remove it")
    held_out = options.evaluate_after or config.eval_strategy != "no"
    refuse_unread_of_distill(options, config.reward_timeout, _eval_source(options) if held_out else None)


def _eval_source(options: DistillOptions) -> str:
    """Where held-out prompts come from; never the training prompts by default."""
    train = options.dataset_name or ""
    if not train and options.eval_dataset_name is None and options.evaluate_after:
        raise ConfigError(
            "eval_dataset_name is missing: groups hold training prompts only; give held-out prompts, or "
            "evaluate_after=false"
        )
    if options.eval_dataset_name is None and options.evaluate_after and Path(train).is_file():
        raise ConfigError(
            f"dataset_name={train!r} is one file, without a test split, and evaluation needs held-out prompts; "
            "give eval_dataset_name, or evaluate_after=false"
        )
    return options.eval_dataset_name or train


def _trainer(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    eval_source: str,
    checkpoint: Path | None,
) -> "DistillationTrainer":
    from nonpareil.jobs.stored import check_reward
    from nonpareil.training.checks import check_scorable, refuse_adapter_on_adapter
    from nonpareil.training.identity import run_identity
    from nonpareil.training.method import check_group_rewards
    from nonpareil.training.resume import refuse_another_run
    from nonpareil.training.sampler import planned_steps
    from nonpareil.training.trainer import DistillationTrainer

    policy = _policy(options, config, config.policy_dtype())
    if config.use_peft:
        refuse_adapter_on_adapter(policy.name_or_path)
    groups, prompts = _training_data(options, config, method, policy)
    reward = _reward(options, config, policy)
    check_group_rewards(reward, method, config, stored=groups is not None)
    if groups is not None:
        check_reward(options.groups or "", reward)
    held_out = None
    if options.evaluate_after or config.eval_strategy != "no":
        held_out = _prompts(options, policy, eval_source, options.dataset_test_split, held_out=True)
        policy.check(held_out, config.sampling(config.seed))
    if options.evaluate_after or options.unseen_reward:  # which would fail only after training
        check_rewards(_evaluation(options, config, eval_source), reward, held_out or [], policy.tokenizer)
    check_scorable(reward, method, config, prompts, held_out or [], policy.tokenizer)
    model = policy.info()["fingerprint"]
    planned = planned_steps(config, method, len(prompts))
    if checkpoint is not None:  # before any weight is read
        identity = run_identity(config, method, prompts, reward, model, groups)
        refuse_another_run(checkpoint, identity | policy.ends_of_run(), planned)
    trainer = DistillationTrainer(
        policy.local_path() if config.shard_weights else policy.load(),
        reward,
        config,
        prompts,
        eval_dataset=held_out,
        processing_class=policy.tokenizer,
        groups=groups,
    )
    trainer.identity["model"] = model
    return trainer


def _policy(options: DistillOptions, config: "DistillationConfig", dtype: str) -> "PolicySource":
    from nonpareil.jobs.policy import PolicySource

    name, revision = options.model_name_or_path or "", options.model_revision
    policy = PolicySource(name, revision, dtype, trust_remote_code=config.trust_remote_code)
    if options.evaluate_after or not (options.groups or config.use_vllm):
        policy.check_drawable()
    return policy


def _reward(
    options: DistillOptions, config: "DistillationConfig", policy: "PolicySource"
) -> "CombinedReward":
    weights, timeout, trust = config.reward_weights, config.reward_timeout, config.trust_remote_code
    return load_reward(options, weights, timeout, trust_remote_code=trust, tokenizer=policy.tokenizer)


def _training_data(
    options: DistillOptions, config: "DistillationConfig", method: "Method", policy: "PolicySource"
) -> "tuple[list[Group] | None, list[Prompt]]":
    """The stored groups, where there are some, and the prompts; what cannot work is refused here."""
    from nonpareil.jobs.stored import load_groups

    groups = None
    if options.groups is not None:
        kwargs = template_kwargs(options)
        groups = load_groups(options.groups, policy, config, method, options.max_train_prompts, kwargs)
        prompts = [prompt_of(group) for group in groups]
    else:
        prompts = _prompts(options, policy, options.dataset_name or "", options.dataset_train_split)
    policy.check(prompts, config.sampling(config.seed))
    return groups, prompts


def _prompts(
    options: DistillOptions, policy: "PolicySource", source: str, split: str, held_out: bool = False
) -> list[Prompt]:
    limit = options.max_eval_prompts if held_out else options.max_train_prompts
    return load_prompt_records(options, policy.tokenizer, source=source, split=split, limit=limit)


def _dry_run(options: DistillOptions, config: "DistillationConfig", method: "Method") -> dict[str, Any]:
    """What would be trained on what; checks all that a training would, save rewards and held-out prompts."""
    from nonpareil.jobs.dry_run import plan
    from nonpareil.jobs.stored import check_reward

    policy = _policy(options, config, "float32")
    groups, prompts = _training_data(options, config, method, policy)
    if groups is not None:
        check_reward(options.groups or "", _reward(options, config, policy))
    return plan(policy, config, method, prompts)


def _evaluation(options: DistillOptions, config: "DistillationConfig", eval_source: str) -> EvaluateOptions:
    shared = {name: getattr(options, name) for name in PromptOptions.__dataclass_fields__}
    shared |= {name: getattr(options, name) for name in RewardInputOptions.__dataclass_fields__}
    return EvaluateOptions(
        **{**shared, "dataset_name": eval_source},
        reward_weights=config.reward_weights,
        reward_timeout=config.reward_timeout,
        trust_remote_code=config.trust_remote_code,
        model_name_or_path=str(config.output_dir),
        reference_model_name_or_path=options.model_name_or_path,
        reference_model_revision=options.model_revision,
        dataset_split=options.dataset_test_split,
        max_prompts=options.max_eval_prompts,
        num_generations=options.num_generations_eval,
        num_reference_samples=options.num_reference_samples_eval,
        unseen_reward=options.unseen_reward,
        dtype=training_dtype(config, options.kl_dtype),
        kl_dtype=options.kl_dtype,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        seed=config.seed,
        output_dir=str(Path(str(config.output_dir)) / "evaluation"),
        title=f"{Path(str(config.output_dir)).name}: trained with {Path(config.method).name}",
        overwrite=True,
    )
