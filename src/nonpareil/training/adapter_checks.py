"""What does not go with a LoRA adapter, refused before a training."""

from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.models.quantized import check_quantized
from nonpareil.training.settings import DistillationSettings


def check_adapter(
    settings: DistillationSettings, adapted: bool, peft_config: Any = None, model: Any = None
) -> None:
    """Refuse what does not go with a LoRA adapter, whether `use_peft` or a `peft_config` asks for it."""
    if model is not None:
        check_quantized(settings.init().quantization, adapted=adapted)
    if not adapted:
        return
    if isinstance(model, str):
        refuse_adapter_on_adapter(model)
    if peft_config is not None and not hasattr(peft_config, "peft_type"):
        raise ConfigError(f"peft_config is a {type(peft_config).__name__}; give a peft.LoraConfig")
    if settings.frozen_parameters:
        raise ConfigError("frozen_parameters with LoRA: only the adapter is trained; remove one")
    if settings.shard_weights:
        raise ConfigError(
            "LoRA with shard_weights is not supported: the base is whole in every process; remove one"
        )
    if settings.use_vllm and settings.vllm_mode == "server":
        raise ConfigError(
            "LoRA with vllm_mode=server is not supported: the server takes whole weights; give "
            "vllm_mode=colocate"
        )
    targets = settings.lora_target_parameters or getattr(peft_config, "target_parameters", None)
    if targets and settings.init().quantization:
        raise ConfigError(
            f"lora_target_parameters={list(targets)!r} with a quantised base: its parameters are packed, and no "
            "factors can be added to them; remove one"
        )
    if targets and settings.use_vllm:
        raise ConfigError(
            "use_vllm with lora_target_parameters is not supported: vLLM adapts linear layers alone; remove one"
        )
    for name in ("use_dora", "lora_modules_to_save"):
        if settings.use_vllm and getattr(settings, name):
            raise ConfigError(
                f"use_vllm with {name} is not supported: vLLM draws from an adapter's factors alone; remove one"
            )


def check_scalable(settings: DistillationSettings, computes: str) -> None:
    """Refuse an adapter that could not be drawn from at a strength of its training, beside its base.

    `computes` is the dtype that the policy is measured in.

    Raises:
        ConfigError: it is more than factors, and not measured in float32, where it is merged.
    """
    for name in ("use_dora", "lora_modules_to_save", "lora_target_parameters"):
        if settings.use_peft and getattr(settings, name) and computes != "float32":
            raise ConfigError(
                f"{name} with a policy at a strength of its training in {computes}: factors are scaled beside "
                "the base there, and this adapter is more; give bf16=false (float32, where it is merged), or "
                f"remove {name}"
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
