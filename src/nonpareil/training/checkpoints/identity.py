"""What a training is: everything that decides which weights come out, so that another is not taken for it."""

import hashlib
import inspect
import json
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from nonpareil.credits import CreditsByPrompt
from nonpareil.errors import ModelError
from nonpareil.methods import METHODS
from nonpareil.methods.base import Method
from nonpareil.models.fingerprint import fingerprint, module_fingerprint
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.records import Group, Prompt, prompt_identity
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.config import DistillationConfig
from nonpareil.training.inherited import UNREAD
from nonpareil.training.method import anchor_motion

if TYPE_CHECKING:
    from peft import LoraConfig

MAY_CHANGE = frozenset(
    {
        # how long
        *("max_steps", "num_train_epochs", "max_train_seconds"),
        # where, with how much memory, on how many devices
        *("processes", "use_cpu", "shard_weights", "max_tokens_per_batch", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs"),
        "attn_implementation",
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("torch_empty_cache_steps", "dataloader_pin_memory", "ddp_backend", "ddp_timeout"),
        *("vllm_mode", "vllm_gpu_memory_utilization"),
        # what is saved when
        *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "save_only_model"),
        *("enable_jit_checkpoint", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        # what is looked at and logged on the way
        *("do_eval", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
        *("log_level", "log_level_replica", "log_on_each_node", "log_completions", "disable_tqdm", "debug"),
        "num_completions_to_print",
        *("report_to", "run_name", "project", "skip_memory_metrics"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"),
        *("hub_always_push", "hub_revision"),
        # how long a reward may take, and whether code may be read to load what the fingerprint knows
        *("reward_timeout", "trust_remote_code"),
        # what nothing reads: only another version's default can differ
        *UNREAD,
    }
)
"""Settings of `DistillationConfig`, and the number of processes, that a training may be taken up with anew."""
TRAINING_VERSION = 2
"""Rises with every change after which the same settings train other weights; 1 said nothing of it."""
_LABELS = frozenset(
    {"output_dir", "resume_from_checkpoint", "local_rank", "hub_token", "vllm_server_base_url", "fsdp_config"}
)
"""Where things lie, and secrets: not kept."""
_TOLD_OTHERWISE = frozenset(
    {"method", "method_settings", "anchor_ema_rate", "anchor_refresh_steps", "reward_weights"}
    | {"per_device_train_batch_size", "chat_template_kwargs"}
)


def run_identity(
    args: DistillationConfig,
    method: Method,
    prompts: Sequence[Prompt],
    reward: CombinedReward,
    model: str,
    groups: Sequence[Group] | None = None,
    peft_config: "LoraConfig | None" = None,
    *,
    credits: CreditsByPrompt | None = None,
) -> dict[str, Any]:
    """Settings under the names that a user gave them, and content (`model`: its fingerprint) in place of paths.

    `settings` may lack a key in another version of transformers; all else is compared whole.
    """
    settings = {k: v for k, v in args.to_dict().items() if k not in _LABELS | _TOLD_OTHERWISE}
    rate, refresh_steps = anchor_motion(args, method)
    described = {
        "training_version": TRAINING_VERSION,
        "settings": settings,
        "processes": args.world_size,
        # A key of checkpoints that are there: it stays as it is.
        "prompts a step (per_device_train_batch_size x processes)": args.per_device_train_batch_size
        * args.world_size,
        "method": _name(method),
        "anchor_ema_rate": rate,
        "anchor_refresh_steps": refresh_steps,
        "model": model,
        "prompts": {**prompt_identity(prompts), "token_ids_sha256": _token_ids(prompts)},
        "groups": None if groups is None else hash_of_groups(groups),
        "reward": _reward(reward),
        "peft_config": None if peft_config is None else _adapter(peft_config),
    }
    if credits is not None:
        described["credits"] = _hash_of_credits(groups or (), credits)
    for field in fields(method):  # type: ignore[arg-type]  # check_method asks for a dataclass
        key = f"{field.name} of the method" if field.name in described else field.name
        described[key] = getattr(method, field.name)
    return json.loads(json.dumps(described, default=str))


def model_identity(given: PreTrainedModel | str, model: PreTrainedModel, init: ModelInit = PLAIN) -> str:
    """The fingerprint of a policy's files, where it was `given` by its path, else of its weights as they are."""
    if isinstance(given, str):
        with suppress(ModelError):  # a hub's model whose commit is unknown
            return fingerprint(given, init=init)
    return module_fingerprint(model)


def _name(method: Method) -> str:
    """Ours by name; a user's own by its class and the hash of its file."""
    cls = type(method)
    ours = {made: name for name, made in METHODS.items()}
    if cls in ours:
        return ours[cls]
    try:
        source = hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):  # made at a prompt
        source = "no file"
    return f"{cls.__qualname__} ({source})"


def _reward(reward: CombinedReward) -> dict[str, Any]:
    """By name, without paths where the content is known, and without how long an answer may take."""
    described = reward.describe()
    by_name = {}
    for each in described["rewards"]:
        labels = {"name", "timeout", *(["path"] if each.get("fingerprint") else [])}
        by_name[each["name"]] = {key: value for key, value in each.items() if key not in labels}
    return {"names": list(by_name), "reward_weights": described["weights"], **by_name}


def _adapter(config: "LoraConfig") -> dict[str, Any]:
    unread = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "task_type")
    settings = {key: value for key, value in config.to_dict().items() if key not in unread}
    # Sets have no order of their own.
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def _token_ids(prompts: Sequence[Prompt]) -> str:
    """Save those of a chat template, which may write the date: tokenizer and template are in their identity."""
    digest = hashlib.sha256()
    for prompt in prompts:
        if prompt.rendering is None:
            digest.update(array("q", prompt.token_ids).tobytes() + b"|")
    return digest.hexdigest()[:16]


def hash_of_groups(groups: Sequence[Group]) -> str:
    """Of what is learnt from: the completions' tokens and rewards. Log-probs follow from those and the model."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"{group.prompt_id} {group.rewards} {group.completions}".encode())
        for ids in group.completion_token_ids:
            digest.update(array("q", ids).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _hash_of_credits(groups: Sequence[Group], credits: CreditsByPrompt) -> str:
    """Of those of the groups' completions."""
    digest = hashlib.sha256()
    for group in groups:
        for place, each in enumerate(credits.get(group.prompt_id, ())):
            if each is None:
                continue
            digest.update(f"{group.prompt_id} {place} {each.token_ids.shape}|".encode())
            for values in (each.token_ids, each.weights, each.advantages, each.prefix_values):
                digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
