"""Bases in 4 or 8 bits, by bitsandbytes: read so, trained beside, and never merged into."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from nonpareil.errors import ConfigError


def check_quantized(quantization: Mapping[str, Any], *, adapted: bool) -> None:
    """Refuse quantised weights that nothing could train, or that nothing here can read.

    Raises:
        ConfigError: no LoRA, or no bitsandbytes.
    """
    if not quantization:
        return
    name = "load_in_4bit" if "load_in_4bit" in quantization else "load_in_8bit"
    if not adapted:
        raise ConfigError(
            f"{name} without LoRA: weights in so few bits cannot be trained themselves; give use_peft=true"
        )
    check_installed(name)


def check_installed(name: str) -> None:
    """Refuse quantised weights where bitsandbytes is not installed.

    Raises:
        ConfigError: naming the setting.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f'{name} needs bitsandbytes: pip install "nonpareil[bitsandbytes]"')


def refuse_quantization_config(given: Any) -> None:
    """Refuse TRL's argument of that name, unless it asks for nothing.

    Raises:
        ConfigError: naming the settings instead.
    """
    if given is not None:
        raise ConfigError(
            f"quantization_config (a {type(given).__name__}) is not read; give load_in_4bit=True (with "
            "bnb_4bit_quant_type, use_bnb_nested_quant, bnb_4bit_quant_storage) or load_in_8bit=True to "
            "DistillationConfig"
        )


def quantization_config(quantization: Mapping[str, Any], dtype: Any) -> Any:
    """transformers' BitsAndBytesConfig; products of 4 bits are in `dtype`.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    four = bool(quantization.get("load_in_4bit"))
    check_installed("load_in_4bit" if four else "load_in_8bit")
    return BitsAndBytesConfig(**quantization, **({"bnb_4bit_compute_dtype": dtype} if four else {}))


def keep_layout(model: nn.Module) -> None:
    """Let no layer lay its 4 bits out anew for a CPU's drawing: there is no gradient by way of that."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are in few bits, by bitsandbytes."""
    config = getattr(model.config, "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return getattr(method, "value", method) == "bitsandbytes"


def check_plain_after(quantization: Mapping[str, Any], what: str) -> None:
    """Refuse what would merge an adapter into quantised weights, which would be rounded anew.

    Raises:
        ConfigError: naming `what` asks for it.
    """
    if quantization:
        raise ConfigError(
            f"{what} with a quantised base: an adapter cannot be merged into weights of so few bits; remove one, "
            "or serve the adapter beside its base"
        )
