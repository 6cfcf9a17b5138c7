"""Which LoRA adapters can be trained: those that leave the base as it is, and can be merged into it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from nonpareil.errors import ConfigError
from nonpareil.models.saved_modules import saved_modules

_SUPPORTED = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias", "fan_in_fan_out"),
        *("use_dora", "lora_dropout", "modules_to_save"),
        *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
        # what decides nothing here
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config"),
    }
)
"""Settings of `LoraConfig` under which policy and anchor each have all that is trained, and the base stays."""
_START_AS_THE_BASE = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; others take the adapter out of it."""


def check_lora_config(config: Any) -> None:
    """Refuse all that makes an adapter more than factors beside weights that stay: policy and anchor share those.

    Raises:
        ConfigError: naming the setting.
    """
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise ConfigError(f"peft_config is a {type(config).__name__}; only LoRA adapters are supported")
    plain = LoraConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        allowed = (
            _START_AS_THE_BASE if field.name == "init_lora_weights" else (getattr(plain, field.name), None)
        )
        if field.name not in _SUPPORTED and value not in allowed and value:
            raise ConfigError(
                f"peft_config.{field.name}={value!r} is not supported: policy and anchor share every other weight "
                "and must be the models that are trained; remove it"
            )


def check_target_parameters(model: nn.Module, config: Any) -> None:
    """Refuse `target_parameters` that the model has not, which PEFT passes over.

    Raises:
        ConfigError: naming the first, and matrices of experts that there are; or beside what PEFT cannot do there.
    """
    targets = config.target_parameters or []
    names = [name for name, _ in model.named_parameters()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            stacked = dict.fromkeys(
                ".".join(name.split(".")[-2:])
                for name, weight in model.named_parameters()
                if weight.dim() == 3
            )
            hint = f"; there are {', '.join(stacked)}" if stacked else "; it has no weights of experts in one"
            raise ConfigError(
                f"lora_target_parameters: the model has no parameter that ends in {target!r}{hint}"
            )
    for name in ("lora_dropout", "use_dora", "lora_bias"):
        if targets and getattr(config, name):
            raise ConfigError(f"{name} with lora_target_parameters is not supported by PEFT; remove one")


def check_mergeable(adapted: nn.Module) -> None:
    """Refuse an adapter whose biases have nothing to be added to.

    Raises:
        ConfigError: naming the first such layer.
    """
    for name, module in adapted.named_modules():
        own_biases = [up.bias for up in getattr(module, "lora_B", {}).values()]
        layer: Any = module
        if any(bias is not None for bias in own_biases) and getattr(layer.base_layer, "bias", None) is None:
            raise ConfigError(
                f"peft_config.lora_bias=True cannot be: {name} has no bias, so the adapter could never be merged; "
                "remove it"
            )


def check_magnitudes(adapted: nn.Module) -> None:
    """Refuse DoRA of layers that are not linear: rows of one pass could not each have an adapter of their own.

    Raises:
        ConfigError: naming the first such layer.
    """
    named: Any = adapted.named_modules()
    for name, layer in named:
        if not len(getattr(layer, "lora_magnitude_vector", ())):
            continue
        if type(layer.base_layer) is not nn.Linear:
            raise ConfigError(
                f"use_dora: {name} is a {type(layer.base_layer).__name__}, and DoRA is drawn from in plain linear "
                "layers alone; leave it out of lora_target_modules, or remove use_dora"
            )
        if any(up.bias is not None for up in layer.lora_B.values()):
            raise ConfigError("use_dora with peft_config.lora_bias is not supported; remove one")


def check_saved_modules(adapted: nn.Module, names: Sequence[str]) -> None:
    """Refuse `modules_to_save` that the model has not, or that are more than one layer.

    Raises:
        ConfigError: naming it.
    """
    found = saved_modules(adapted)
    for name in names:
        given = f"lora_modules_to_save={list(names)!r}"
        mine = [place for place in found if place.endswith(name)]
        if not mine:
            raise ConfigError(
                f"{given}: the model has no layer of the name {name!r}; name layers such as embed_tokens or lm_head"
            )
        if list(found[mine[0]].original_module.children()):
            raise ConfigError(
                f"{given}: {name!r} holds other layers, which rows of one pass cannot each have a copy of; name "
                "single layers (embed_tokens, lm_head), or adapt those inside it by lora_target_modules"
            )
