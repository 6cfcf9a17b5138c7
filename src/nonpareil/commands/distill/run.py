"""Distil best-of-N into the policy, save it as a plain Hugging Face checkpoint, and evaluate it."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.command import Command
from nonpareil.commands.distill.card import write_model_card
from nonpareil.commands.distill.data import (
    _prompts,
    eval_source_of,
    trained_policy,
    training_data,
    training_reward,
)
from nonpareil.commands.distill.dry_run import dry_run
from nonpareil.commands.distill.folder import distillation_folder, start_anew
from nonpareil.commands.distill.show import show, status
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.commands.evaluate.dtypes import training_dtype
from nonpareil.commands.evaluate.rewards import check_rewards
from nonpareil.commands.evaluate.show import as_json
from nonpareil.commands.inputs import require_all
from nonpareil.errors import ConfigError
from nonpareil.folders import held_folder
from nonpareil.options.commands import DistillOptions, EvaluateOptions
from nonpareil.options.demo import demo_training, uses_demo
from nonpareil.options.rewards import RewardInputOptions, refuse_judge
from nonpareil.options.shared import PromptOptions
from nonpareil.options.unread import refuse_unread_of_distill

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig
    from nonpareil.training.trainer import DistillationTrainer


def run(options: DistillOptions, config: "DistillationConfig") -> dict[str, Any]:
    """Train, save, evaluate; returns the figures and where everything lies.

    `interrupted` is True after Ctrl-C; a checkpoint was saved then, and nothing was evaluated.

    Of several processes the first one evaluates; the others end after training, with nothing to return.

    Raises:
        NonpareilError: whatever cannot work, before any model is loaded where that can be known.
    """
    from nonpareil.models.memory import keep_freed_memory
    from nonpareil.training.method import method_of

    keep_freed_memory()
    method = method_of(config, stored=options.groups is not None)
    check(options, config)
    eval_source = eval_source_of(options)
    if options.dry_run:
        return dry_run(options, config, method)
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
    refuse_unread_of_distill(options, config, eval_source_of(options) if held_out else None)


def _trainer(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    eval_source: str,
    checkpoint: Path | None,
) -> "DistillationTrainer":
    from nonpareil.commands.distill.data import check_reward
    from nonpareil.training.adapter_checks import refuse_adapter_on_adapter
    from nonpareil.training.arguments import check_scorable
    from nonpareil.training.identity import run_identity
    from nonpareil.training.method import check_group_rewards
    from nonpareil.training.prompt_order import planned_steps
    from nonpareil.training.resume import refuse_another_run
    from nonpareil.training.trainer import DistillationTrainer

    policy = trained_policy(options, config, config.policy_dtype())
    if config.use_peft:
        refuse_adapter_on_adapter(policy.name_or_path)
    groups, prompts = training_data(options, config, method, policy)
    reward = training_reward(options, config, policy)
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


def _option_classes() -> list[type]:
    from nonpareil.training.config import DistillationConfig

    return [DistillOptions, DistillationConfig]


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    if uses_demo(DistillOptions, given):
        return demo_training(given.get("method", "jbond"))
    return {"output_dir": "nonpareil-distilled"}


COMMAND = Command(
    description=__doc__,
    example=(
        "nonpareil distill --model_name_or_path ./my-model --dataset_name my-prompts \\\n"
        "      --reward_model_name_or_path ./my-reward-model --output_dir distilled --max_steps 500"
    ),
    options=_option_classes,
    run=run,
    show=show,
    defaults=_defaults,
    as_json=as_json,
    status=status,
)
