"""Distil best-of-N into the policy, save it as a plain Hugging Face checkpoint, and evaluate it."""

from contextlib import nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.commands.distill.asked_strength import all_evaluations, write_asked
from nonpareil.commands.distill.card import failed, reached, with_names
from nonpareil.commands.distill.checks import check_options
from nonpareil.commands.distill.credits import makes_credits
from nonpareil.commands.distill.dry_run import dry_run
from nonpareil.commands.distill.evaluation import evaluation_options
from nonpareil.commands.distill.folder import (
    asked_place,
    delete_outdated,
    distillation_folder,
    start_anew,
)
from nonpareil.commands.distill.inputs import (
    check_evaluable,
    held_out_prompts,
    trained_policy,
    training_data,
    training_reward,
)
from nonpareil.commands.distill.learnt import tell_learnt
from nonpareil.commands.distill.spent import count_stages
from nonpareil.commands.distill.stages import before_training, check_stages
from nonpareil.commands.evaluate import run as evaluate
from nonpareil.errors import NonpareilError
from nonpareil.folders import held_folder
from nonpareil.options.distill import DistillOptions
from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.terminal import is_quiet

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.card import CardFacts
    from nonpareil.training.config import DistillationConfig
    from nonpareil.training.trainer import DistillationTrainer


def run(options: DistillOptions, config: "DistillationConfig") -> dict[str, Any]:
    """Train, save, evaluate; returns the metrics and where everything lies.

    `interrupted` is True after Ctrl-C; a checkpoint was saved then, and nothing was evaluated.

    Of several processes the first one evaluates; the others end after training, with nothing to return.

    Raises:
        NonpareilError: whatever cannot work, before any model is loaded where that can be known.
    """
    from nonpareil.models.memory import keep_freed_memory
    from nonpareil.training.method import method_of

    keep_freed_memory()
    to_make = makes_credits(options, config)
    method = method_of(
        config,
        stored=to_make or options.groups is not None,
        credited=to_make or options.credits is not None,
    )
    check_options(options, config)
    if options.dry_run:
        return dry_run(options, config, method)
    evaluation = evaluation_options(options, config, method) if options.evaluate_after else None
    with distillation_folder(options, config, all_evaluations(options, evaluation)):
        return _distill(options, config, method, evaluation)


def _distill(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    evaluation: EvaluateOptions | None,
) -> dict[str, Any]:
    """What follows once the folder is ours."""
    from nonpareil.models.distributed import end_processes, first_process_first
    from nonpareil.models.memory import free_memory
    from nonpareil.training.checkpoints.resume import checkpoint_to_resume

    output_dir = Path(str(config.output_dir))
    checkpoint = checkpoint_to_resume(config.resume_from_checkpoint, output_dir)
    trainer = _trainer(options, config, method, evaluation, checkpoint)
    if checkpoint is None:
        first_process_first(partial(start_anew, output_dir))  # all that can be refused was
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        trainer.release()
    if makes_credits(options, config):
        count_stages(output_dir, drew_pool=options.groups is None, fitted_value=options.value is None)
    facts = trainer.card_facts
    result: dict[str, Any] = {"output_dir": str(output_dir), "steps": trainer.state.global_step}
    interrupted = trainer.stopper.stopped and trainer.state.global_step < trainer.state.max_steps
    if not interrupted:
        trainer.save_finished()
        if trainer.is_world_process_zero():
            tell_learnt(trainer.state.log_history)
    del trainer
    free_memory()  # a trainer and its callbacks hold each other, and models with them
    if not end_processes():
        return {}
    if interrupted:
        return {**result, "interrupted": True}
    delete_outdated(output_dir, asked_place(options))
    if options.merge:
        result["merged"] = str(_merge(output_dir, trust_remote_code=config.trust_remote_code))
    if evaluation is not None:
        result |= _evaluate(evaluation, output_dir, facts, result["steps"])
        if asked_place(options) is not None:
            result["at_strength"] = write_asked(options, evaluation, result["evaluation"])
    if config.push_to_hub:
        result["pushed"] = _push(output_dir, config, result["steps"])
    return {**result, "interrupted": False}


def _evaluate(
    evaluation: EvaluateOptions, output_dir: Path, facts: "CardFacts", steps: int
) -> dict[str, Any]:
    """Evaluate, and complete the card that was written with the weights: by what was reached, or that it failed."""
    from nonpareil.training.card import CARD, write_card

    try:
        result = evaluate.evaluate_in_place(evaluation)
    except NonpareilError as error:
        write_card(output_dir / CARD, facts, steps, failed(error))
        raise
    write_card(output_dir / CARD, facts, steps, reached(result["evaluation"]))
    return result


def _push(output_dir: Path, config: "DistillationConfig", steps: int) -> str:
    """Send the finished folder, with its finished card, to the hub."""
    from nonpareil.models.pushing import push_folder

    return push_folder(
        output_dir,
        config.hub_model_id or output_dir.resolve().name,
        message=f"Trained {steps} steps",
        token=config.hub_token,
        revision=config.hub_revision,
        private=config.hub_private_repo,
    )


def _merge(output_dir: Path, *, trust_remote_code: bool) -> Path:
    """Write the base with the trained adapter merged in, into a folder of its own."""
    from nonpareil.models.merged_folder import save_merged

    target = output_dir / "merged"
    folder = held_folder(target)
    with folder.staged("merged") if folder else nullcontext(target) as staging:
        save_merged(output_dir, staging, trust_remote_code=trust_remote_code)
    return target


def _trainer(
    options: DistillOptions,
    config: "DistillationConfig",
    method: "Method",
    evaluation: EvaluateOptions | None,
    checkpoint: Path | None,
) -> "DistillationTrainer":
    """The trainer, with its models loaded, once all that can be refused without them was.

    Raises:
        NonpareilError: prompts, rewards or a policy that cannot work, or a checkpoint of another run.
    """
    from nonpareil.training.arguments import check_scorable
    from nonpareil.training.checkpoints.identity import run_identity
    from nonpareil.training.checkpoints.resume import refuse_another_run
    from nonpareil.training.method import check_aggregation, check_group_rewards
    from nonpareil.training.prompt_order import planned_steps
    from nonpareil.training.trainer import DistillationTrainer

    policy = trained_policy(options, config, config.policy_dtype())
    data = training_data(options, config, method, policy)
    stored = data.groups is not None
    reward = training_reward(options, config, method, policy, data)
    check_group_rewards(reward, method, config, stored=stored)
    check_aggregation(reward, method, config, data.groups or ())
    held_out = held_out_prompts(options, config, policy, data.prompts)
    if evaluation is not None:
        check_evaluable(evaluation, reward, held_out or [], policy)
    check_scorable(reward, method, config, data.prompts, held_out or [], policy.tokenizer)
    model = policy.info()["fingerprint"]
    planned = planned_steps(config, method, len(data.prompts))  # which refuses a training without a step
    if makes_credits(options, config):
        check_stages(options, config, policy, data, reward)
        reward.release()  # to make room; a model is loaded again when next it scores
        data = before_training(options, config, method, policy, data, resumed=checkpoint is not None)
    groups, prompts, credits = data
    if checkpoint is not None:  # before any weight is read
        identity = run_identity(config, method, prompts, reward, model, groups, credits=credits)
        refuse_another_run(checkpoint, identity | policy.ends_of_run(), planned)
    if groups is not None:
        config = _without_template(config)
    trainer = DistillationTrainer(
        policy.local_path() if config.shard_weights else policy.load(),
        reward,
        config,
        prompts if groups is None else None,
        eval_dataset=held_out,
        processing_class=policy.tokenizer,
        groups=groups,
        credits=credits,
    )
    trainer.identity["model"] = model
    return _introduced(trainer, options)


def _without_template(config: "DistillationConfig") -> "DistillationConfig":
    """For groups, whose rendering was compared where they were read."""
    config = copy(config)
    config.chat_template_kwargs = None
    return config


def _introduced(trainer: "DistillationTrainer", options: DistillOptions) -> "DistillationTrainer":
    """The trainer, told by what names its parts were given; it prints nothing where quiet is asked for."""
    from transformers import PrinterCallback

    trainer.card_facts = with_names(trainer.card_facts, options)
    if is_quiet():
        trainer.remove_callback(PrinterCallback)
    return trainer
