"""The trainer's arguments as Python gives them: refused by name where they are of another kind, before any work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.methods.base import Method
from nonpareil.models.empty import empty_policy
from nonpareil.models.loading import load_policy, load_tokenizer
from nonpareil.models.zero import zero_requested
from nonpareil.records import Group, Prompt
from nonpareil.rewards import CombinedReward
from nonpareil.training.config import DistillationConfig

_PROMPTS = (
    "give prompts as tokenize_prompts(load_prompts(source), tokenizer) makes them (nonpareil.rollouts), or "
    'tokenize_prompts([{"prompt": text}, ...], tokenizer)'
)


def check_arguments(
    model: Any,
    args: Any,
    *,
    train_dataset: Any,
    eval_dataset: Any,
    groups: Any,
    processing_class: Any,
    callbacks: Any,
    optimizers: Any,
) -> None:
    """Refuse what the trainer cannot take, with what it takes instead.

    Raises:
        ConfigError: args, tokenizer, callbacks or optimizers of another kind.
        DataError: datasets or groups of another kind.
        ModelError: a model that is none, or that holds no weights.
    """
    if not isinstance(args, DistillationConfig):
        raise ConfigError(
            f"args is a {type(args).__name__}; give a DistillationConfig, which takes all of TrainingArguments"
        )
    _check_model(model)
    if processing_class is not None and not isinstance(processing_class, Tokenizer):
        raise ConfigError(
            f"processing_class is a {type(processing_class).__name__}; give the policy's tokenizer"
        )
    _check_rows("train_dataset", train_dataset, Prompt, _PROMPTS)
    _check_rows("eval_dataset", eval_dataset, Prompt, _PROMPTS)
    _check_rows("groups", groups, Group, "give groups as read_groups(folder) reads them (nonpareil.rollouts)")
    _check_callbacks(callbacks)
    _check_optimizers(optimizers)


def read_policy(path: str, args: DistillationConfig) -> tuple[PreTrainedModel, Path | None, Tokenizer]:
    """The model at a path and its tokenizer; to be read shard by shard, without its weights and with their folder.

    Raises:
        ModelError, ConfigError: as `load_policy`.
    """
    trust = args.trust_remote_code
    in_shards = args.shard_weights and not zero_requested()
    empty = empty_policy(path, trust_remote_code=trust) if in_shards else None
    if empty is not None:
        return *empty, load_tokenizer(path, trust_remote_code=trust)
    model, tokenizer = load_policy(
        path, dtype=args.policy_dtype(), device=args.device, trust_remote_code=trust
    )
    return model, None, tokenizer


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


def _check_rows(name: str, rows: Any, kind: type, remedy: str) -> None:
    if rows is None:
        return
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise DataError(f"{name} is a {type(rows).__name__}, not a list of {kind.__name__}s; {remedy}")
    for place, row in enumerate(rows):
        if not isinstance(row, kind):
            raise DataError(f"{name}[{place}] is a {type(row).__name__}, not a {kind.__name__}; {remedy}")


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
