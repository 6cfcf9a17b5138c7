"""What a comparison's budget allows each run: steps, and the shared pool counted in full."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nonpareil.commands.compare.spec import ComparisonSpec, MethodEntry
from nonpareil.errors import ConfigError
from nonpareil.options.methods import reads_credits

if TYPE_CHECKING:
    from nonpareil.commands.compare.results import RunRecord
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig


def refuse_pool_over_budget(spec: ComparisonSpec, entry: MethodEntry, used: int) -> None:
    """The stored completions that a method learns from must fit its budget.

    Raises:
        ConfigError: they do not.
    """
    if spec.budget.completions is not None and used > spec.budget.completions:
        raise ConfigError(
            f"methods.{entry.name} learns from {used} stored completions, more than "
            f"budget.completions={spec.budget.completions}; raise the budget, or lower groups.max_prompts, "
            "groups.num_generations or the method's max_train_prompts"
        )


def refuse_value(spec: ComparisonSpec, entry: MethodEntry, max_prompts: int | None) -> None:
    """What a run that fits a value before its training cannot have; `max_prompts`: of the pool, its own limit.

    Raises:
        ConfigError: a budget of seconds, or fewer prompts than a value needs.
    """
    from nonpareil.values.examples import FEWEST_PROMPTS

    if not (entry.stored and spec.pool and reads_credits(entry.method)):
        return
    if spec.budget.seconds is not None:
        raise ConfigError(
            f"methods.{entry.name} fits a value and makes credits before its first step, which takes seconds that "
            f"nobody knows before, and budget.seconds={spec.budget.seconds:g} stops a training alone; give "
            "budget.completions (the report has the seconds of every stage)"
        )
    prompts = max_prompts or spec.pool.max_prompts or 0
    if prompts < FEWEST_PROMPTS:
        given = f"max_train_prompts={prompts}" if max_prompts else f"groups.max_prompts={prompts}"
        raise ConfigError(
            f"methods.{entry.name}: {given}, and a value needs {FEWEST_PROMPTS} prompts at the very least, a "
            "useful one hundreds; raise it"
        )


def budgeted_steps(
    spec: ComparisonSpec, entry: MethodEntry, config: "DistillationConfig", method: "Method", used: int
) -> int | None:
    """Distill's max_steps, as far as the budget reaches; None where epochs end the training.

    `used` stored completions are spent before the first step.

    Raises:
        ConfigError: not one step, steps over the budget, two ends to the training or none.
    """
    where = f"methods.{entry.name}"
    steps = config.max_steps if config.max_steps > 0 else None
    epochs = {**spec.training, **entry.settings}.get("num_train_epochs")
    end = None if steps is None else f"max_steps={steps} ends the training"
    drawn = config.per_device_train_batch_size * config.gradient_accumulation_steps
    drawn *= method.policy_draws + method.anchor_draws
    if spec.budget.completions is not None and drawn:
        allowed = _allowed_steps(
            spec.budget.completions, spec.budget.completions - used, drawn, method, where
        )
        if steps is not None and steps > allowed:
            raise ConfigError(
                f"{where}: max_steps={steps} is over the budget, which allows {allowed} steps "
                f"of {drawn} completions; lower max_steps, or leave it out for all of them"
            )
        steps = steps or allowed
    elif steps is None and spec.budget.seconds is not None:
        raise ConfigError(
            f"{where}: max_steps is missing; under budget.seconds it ends the learning-rate schedule (the "
            "clock may stop the run before)"
        )
    elif steps is None and epochs is None:
        raise ConfigError(
            f"{where}: draws nothing, so the budget sets no end to it; give max_steps or num_train_epochs"
        )
    if steps is not None and epochs is not None:
        at = where if "num_train_epochs" in entry.settings else "training"
        raise ConfigError(
            f"{at}: num_train_epochs={epochs:g} is not read by {entry.name}: "
            f"{end or f'the budget allows {steps} steps'}; "
            + ("remove it" if at == where else "give it to methods that end by it alone")
        )
    return steps


def _allowed_steps(budget: int, left: int, drawn: int, method: "Method", where: str) -> int:
    """How many optimizer steps the completions that are left suffice for; each drawing serves several of them."""
    allowed = left // drawn * method.num_iterations
    if allowed < 1:
        raise ConfigError(
            f"{where}: a step draws {drawn} completions, and budget.completions={budget} "
            f"leaves {left}; raise the budget or lower per_device_train_batch_size"
        )
    return allowed


def checkpoint_settings(
    spec: ComparisonSpec, entry: MethodEntry, method: "Method", steps: int | None
) -> dict[str, Any]:
    """Where checkpoints are saved, spread over the steps (None: over the epochs), unless the file says."""
    if {"save_steps", "save_strategy"} & {*entry.settings, *spec.training}:
        return {}
    parts = spec.options.checkpoints + 1
    if steps is None:
        return {"save_steps": 1 / parts} if parts > 1 else {"save_strategy": "no"}
    iterations = method.num_iterations  # on the same draws, which a checkpoint may not part
    return {"save_steps": math.ceil(steps / parts / iterations) * iterations}


def over_budget(spec: ComparisonSpec, records: Sequence["RunRecord"]) -> list[dict[str, str]]:
    """Finished runs that spent more than the budget, as `failures` are told.

    A command's steps and clock are its own, so that it is seen only afterwards; distillations stop by themselves.
    """
    budget, found = spec.budget, []
    commands = {entry.name for entry in spec.methods if entry.command}
    for record in records:
        drawn, seconds = record.spent.completions_drawn, record.spent.seconds
        reason = None
        if budget.completions is not None and drawn is not None and drawn > budget.completions:
            reason = f"{drawn:,} completions, more than budget.completions={budget.completions:,}"
        if record.name in commands and budget.seconds is not None and (seconds or 0) > budget.seconds:
            reason = f"{seconds:,.0f} seconds, more than budget.seconds={budget.seconds:g}"
        if reason is not None:
            found.append({"run": f"{record.name}, seed {record.seed}", "reason": reason})
    return found
