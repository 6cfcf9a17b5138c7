"""Load a causal language model with its tokenizer, or say plainly why that cannot be done."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.adapters import adapter_base, merged
from nonpareil.models.devices import best_device, resolve_dtype

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of them lies in every directory of a model."""


def check_local_path(name_or_path: str, field: str, needs: tuple[str, ...] = MODEL_FILES) -> None:
    """Refuse a name that is a path to nowhere before a hub is asked for it.

    Raises:
        ModelError: the name looks like a path and no directory is there, or one without any of the files it needs.
    """
    path = Path(name_or_path)
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1
    if path.is_dir():
        if not any((path / name).is_file() for name in needs):
            raise ModelError(
                f"{field}={name_or_path!r} has no {needs[0]}; give a Hugging Face model directory"
            )
    elif path.exists() or (looks_like_path and "/" in name_or_path):
        raise ModelError(f"{field}={name_or_path!r}: no such directory; give a model directory or a hub name")


def load_tokenizer(name_or_path: str, revision: str | None = None, *, alone: bool = False) -> Tokenizer:
    """The tokenizer that lies beside a model, or `alone` in a directory of its own.

    Raises:
        ModelError: there is none.
    """
    if alone:
        check_local_path(name_or_path, "tokenizer_name_or_path", ("tokenizer_config.json",))
    else:
        check_local_path(name_or_path, "model_name_or_path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"no tokenizer could be loaded from {name_or_path!r} ({str(error).splitlines()[0]}); "
            "save one there with tokenizer.save_pretrained(...)"
        ) from error
    if len(tokenizer) == 0:  # what AutoTokenizer answers for some directories that hold none
        raise ModelError(
            f"no tokenizer in {name_or_path!r}; save one there with tokenizer.save_pretrained(...)"
        )
    return tokenizer


def load_policy(
    name_or_path: str, *, dtype: str = "auto", revision: str | None = None, device: torch.device | None = None
) -> tuple[PreTrainedModel, Tokenizer]:
    """A causal language model in evaluation mode, and its tokenizer.

    `dtype="auto"` is bfloat16 where the machine gains from it, else float32. The folder of a LoRA adapter is read
    as its base with the adapter merged in, in float32 before any rounding.

    Raises:
        ModelError: no such model, no tokenizer, or weights that the checkpoint does not hold.
        ConfigError: an adapter that names no base.
    """
    device = device or best_device()
    tokenizer = load_tokenizer(name_or_path, revision)
    base = adapter_base(name_or_path)
    if base is not None:
        check_local_path(base[0], "base_model_name_or_path")
        model = merged(load_model(base[0], base[1], torch.float32), name_or_path)
        cast_weights(model, resolve_dtype(dtype, device))
    else:
        model = load_model(name_or_path, revision, resolve_dtype(dtype, device))
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model with its weights in a dtype; `model.to(dtype)` would round the rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load_model(name_or_path: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model on the CPU, with every weight from its checkpoint.

    Raises:
        ModelError: no such model, or weights that the checkpoint does not hold: they would be random.
    """
    try:
        AutoConfig.from_pretrained(name_or_path, revision=revision)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            revision=revision,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
        model, info = loaded
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"model_name_or_path={name_or_path!r} could not be loaded: {error}") from error
    fresh = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if fresh:
        raise ModelError(
            f"{name_or_path!r} does not hold {len(fresh)} weights of its own architecture (first: {fresh[0]}); "
            "they would be random. Is it a causal language model?"
        )
    return model


def stored_state(directory: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights by the model's own names, float32, on the CPU.

    Raises:
        ModelError: as `load_model`.
    """
    return load_model(str(directory), None, torch.float32).state_dict()


def end_token_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Every id that ends a completion: the generation config's, else the model's, else the tokenizer's."""
    return _first_end_ids(getattr(model, "generation_config", None), model.config, tokenizer)


def stored_end_token_ids(
    name_or_path: str, tokenizer: Tokenizer, revision: str | None = None
) -> frozenset[int]:
    """The same of a model that is not loaded, as it would be if it were.

    Raises:
        ModelError: no readable config.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name_or_path!r} has no readable config: {error}") from error
    try:
        generation_config: Any = GenerationConfig.from_pretrained(name_or_path, revision=revision or "main")
    except OSError:  # there need not be one
        generation_config = None
    return _first_end_ids(generation_config, config, tokenizer)


def _first_end_ids(*owners: Any) -> frozenset[int]:
    for owner in owners:
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list | tuple) else [ids])
    return frozenset()


def context_window(model: PreTrainedModel) -> int | None:
    """Most tokens of prompt and completion together, or None where the model states no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def disable_dropout(model: nn.Module) -> None:
    """Dropout off for good: the policy that is trained must be the one that draws."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # rates handed to functional.dropout, as OPT does
            if isinstance(value, float) and any(part in name for part in ("dropout", "pdrop", "layerdrop")):
                setattr(module, name, 0.0)


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Take the parameters whose names contain one of these parts out of training.

    Raises:
        ConfigError: a part that no name contains, or nothing left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            raise ConfigError(
                f"frozen_parameters: no parameter's name contains {part!r}; there are {names[0]}, ..."
            )
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"frozen_parameters={parts}: nothing is left to train")
