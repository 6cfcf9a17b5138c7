"""Where tensors live and how wide they are, decided once for policies and reward models alike."""

import re
from typing import TypeVar

import torch
from torch import nn

from nonpareil.errors import ConfigError
from nonpareil.setting_types import nearest

Model = TypeVar("Model", bound=nn.Module)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def best_device() -> torch.device:
    """The first accelerator of this machine (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weights lie: where its inputs go."""
    return next(model.parameters()).device


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32: emulation only slows down."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype meant by "auto", "bfloat16", "float16", "float32" or a torch dtype.

    Raises:
        ConfigError: any other name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return fast_dtype(device)
    if dtype not in DTYPES:
        hint = nearest(str(dtype), [*DTYPES, "auto"], quoted=True)
        raise ConfigError(f"dtype={dtype!r} is none of 'auto', {', '.join(map(repr, DTYPES))}{hint}")
    return DTYPES[dtype]


def cast_weights(model: Model, dtype: torch.dtype) -> Model:
    """The same model with its weights in a dtype, as `from_pretrained(dtype=...)` would have loaded them.

    `model.to(dtype)` would also round the rotary frequencies, and weights that the architecture keeps in float32.
    """
    kept: list[str] = []
    if dtype in (torch.bfloat16, torch.float16):
        kept += getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    if dtype is torch.float16:
        kept += getattr(model, "_keep_in_fp32_modules", None) or ()
    stays = re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:$|\.)" for name in kept) or "(?!)")
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if stays.search(name) else dtype)
    return model


def dtype_name(dtype: torch.dtype) -> str:
    """As options, manifests and reports write it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has AMX tiles or AVX-512 BF16; asks /proc/cpuinfo where this torch cannot say."""
    asked = [
        getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    ]
    if all(asked):
        return any(question() for question in asked if question)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
