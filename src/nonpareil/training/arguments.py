"""The trainer's arguments as Python gives them: refused by name where they are of another kind, before any work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.checks import check_prompts, check_token_ids
from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.methods.base import Method
from nonpareil.models.loading import stated_limits
from nonpareil.models.model_init import PLAIN
from nonpareil.records import Prompt, refuse_repeated
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.config import DistillationConfig
from nonpareil.training.given import check_datasets
from nonpareil.training.inherited_checks import MEASURED


def check_arguments(
    model: Any,
    args: Any,
    *,
    train_dataset: Any,
    eval_dataset: Any,
    groups: Any,
    credits: Any,
    processing_class: Any,
    callbacks: Any,
    optimizers: Any,
) -> None:
    """Refuse what the trainer cannot take, with what it takes instead.

    Raises:
        ConfigError: args, tokenizer, callbacks or optimizers of another kind, or how to read a model that was.
        DataError: datasets, groups or credits of another kind.
        ModelError: a model that is none, or that holds no weights.
    """
    if not isinstance(args, DistillationConfig):
        raise ConfigError(
            f"args is a {type(args).__name__}; give a DistillationConfig, which takes all of TrainingArguments"
        )
    _check_model(model)
    _check_reading(model, args)
    if processing_class is not None and not isinstance(processing_class, Tokenizer):
        raise ConfigError(
            f"processing_class is a {type(processing_class).__name__}; give the policy's tokenizer"
        )
    check_datasets(train_dataset, eval_dataset, groups)
    _check_held_out(args, eval_dataset)
    if credits is not None and not isinstance(credits, Mapping):
        raise DataError(
            f"credits is a {type(credits).__name__}; give credits as read_credits(folder) reads them "
            "(nonpareil.rollouts.credits), or a dict of them by prompt id"
        )
    _check_callbacks(callbacks)
    _check_optimizers(optimizers)


def check_fit(
    name: str, prompts: Sequence[Prompt], model: PreTrainedModel, config: DistillationConfig
) -> None:
    """Refuse prompts that the model cannot complete; `name` is the argument that they came by.

    Raises:
        DataError: a prompt id twice, no room for a completion, or token ids that the model has not.
    """
    refuse_repeated((prompt.prompt_id for prompt in prompts), name)
    window, vocabulary = stated_limits(model.config)
    check_prompts(prompts, config.max_completion_length, window)
    check_token_ids(prompts, vocabulary, "the model")


def check_scorable(
    reward: CombinedReward,
    method: Method,
    config: DistillationConfig,
    train_prompts: Sequence[Prompt],
    eval_prompts: Sequence[Prompt],
    tokenizer: Any,
) -> None:
    """Refuse prompts that the reward cannot score, and let it keep its tracebacks in the run's folder.

    Stored groups have been scored: where nothing is drawn in training, their prompts are not asked about.
    """
    if method.policy_draws + method.anchor_draws > 0:
        reward.check_prompts(train_prompts, config.max_completion_length, tokenizer)
    if config.eval_strategy != "no":
        reward.check_prompts(eval_prompts, config.max_completion_length, tokenizer)
    reward.log_errors_to(Path(str(config.output_dir)))


def check_best_metric(config: DistillationConfig, reward: CombinedReward) -> None:
    """Refuse a best model by the mean of a reward that evaluation in training does not measure apart.

    Raises:
        ConfigError: naming those that it measures.
    """
    metric = (config.metric_for_best_model or "").removeprefix("eval_")
    apart = [f"rewards/{name}/mean" for name in reward.names] if len(reward.names) > 1 else []
    if metric.startswith("rewards/") and metric not in apart:
        raise ConfigError(
            f"metric_for_best_model={config.metric_for_best_model!r} must be one of "
            f"{', '.join((*MEASURED, *apart))}: the trainer's evaluation measures no other"
        )


def _check_held_out(args: DistillationConfig, eval_dataset: Any) -> None:
    """Refuse evaluations in training without prompts, which would fail at the first of them."""
    when = getattr(args.eval_strategy, "value", args.eval_strategy)
    asked = "eval_on_start=true" if when == "no" and args.eval_on_start else f"eval_strategy={when}"
    empty = eval_dataset is None or (hasattr(eval_dataset, "__len__") and not len(eval_dataset))
    if empty and asked != "eval_strategy=no":
        raise ConfigError(
            f"eval_dataset is empty, and {asked} evaluates on it; give held-out prompts, or remove {asked}"
        )


def _check_model(model: Any) -> None:
    if isinstance(model, str):
        return
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ModelError(f"model is a {type(model).__name__}; give a transformers model, or its path as text")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(
                f"model holds no weights: {name} is on the meta device; load it with from_pretrained(...), or "
                "give its path"
            )


def _check_reading(model: Any, args: DistillationConfig) -> None:
    """Refuse settings of how a model is read where one is given that was read otherwise: they would do nothing."""
    if isinstance(model, str) or args.init() in (PLAIN, getattr(model, "read_with", PLAIN)):
        return
    names = ("gguf_file", "load_in_4bit", "load_in_8bit", "model_init_kwargs", "attn_implementation")
    name = next(name for name in names if getattr(args, name))
    raise ConfigError(
        f"{name}={getattr(args, name)!r} is not read: the model is given as an object, which was read already; "
        f"give its path, or give {name} to what reads it and remove it here"
    )


def _check_callbacks(callbacks: Any) -> None:
    if callbacks is None:
        return
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(f"callbacks is a {type(callbacks).__name__}; give a list of TrainerCallbacks")
    for place, callback in enumerate(callbacks):
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, TrainerCallback):
            raise ConfigError(f"callbacks[{place}] is a {kind.__name__}; give a transformers.TrainerCallback")


def _check_optimizers(optimizers: Any) -> None:
    if not isinstance(optimizers, list | tuple) or len(optimizers) != 2:
        raise ConfigError(
            f"optimizers={optimizers!r:.60} must be a pair: an optimizer and a schedule, either of them or None"
        )
    optimizer, schedule = optimizers
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizers[0] is a {type(optimizer).__name__}; give a torch.optim.Optimizer or None"
        )
    if schedule is not None and not isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        raise ConfigError(f"optimizers[1] is a {type(schedule).__name__}; give a torch LRScheduler or None")
