"""Load a causal language model with its tokenizer, or say plainly why that cannot be done."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.adapters import adapter_base, plain_model
from nonpareil.models.devices import best_device, cast_weights, resolve_dtype
from nonpareil.models.gguf_file import check_gguf
from nonpareil.models.merging import Merged, merged, with_adapter
from nonpareil.models.model_init import PLAIN, ModelInit, base_init
from nonpareil.models.pretrained import (
    check_local_path,
    read_config,
    read_generation_config,
    read_model,
    read_tokenizer,
)
from nonpareil.models.quantized import is_quantized


def load_tokenizer(
    name_or_path: str,
    revision: str | None = None,
    *,
    alone: bool = False,
    field: str = "model_name_or_path",
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> Tokenizer:
    """The tokenizer that lies beside a model, or `alone` in a directory of its own, or in a model's GGUF file.

    Raises:
        ModelError: there is none.
        ConfigError: a revision of a directory.
    """
    gguf_file = init.gguf_file
    if gguf_file is not None:
        check_gguf(name_or_path, gguf_file, field)
    elif alone:
        check_local_path(name_or_path, "tokenizer_name_or_path", ("tokenizer_config.json",))
    else:
        check_local_path(name_or_path, field, revision=revision)
        # First the config, whose damage or absence would look like the tokenizer's; an adapter's folder has none.
        if not Path(name_or_path).is_dir() or (Path(name_or_path) / "config.json").is_file():
            subject = f"{field}={name_or_path!r} has no readable config"
            read_config(name_or_path, revision, subject=subject, trust_remote_code=trust_remote_code)
    return read_tokenizer(name_or_path, revision, trust_remote_code=trust_remote_code, gguf_file=gguf_file)


def load_policy(
    name_or_path: str,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> tuple[PreTrainedModel, Tokenizer]:
    """A causal language model in evaluation mode, and its tokenizer.

    `dtype="auto"` is bfloat16 where the machine gains from it, else float32. The folder of a LoRA adapter is read
    as its base with the adapter merged in, in float32, and in any other dtype as its base with the adapter beside
    it, as of quantised weights. Code that a model brings along is run with `trust_remote_code` alone. `init`: what
    it is read with; of an adapter its base, which is else read as it was when the adapter was trained.

    Raises:
        ModelError: no such model, no tokenizer, or weights that are not in the checkpoint or are no numbers.
        ConfigError: an adapter that names no base.
    """
    device = device or best_device()
    trust = trust_remote_code
    tokenizer = load_tokenizer(name_or_path, revision, trust_remote_code=trust, init=init)
    resolved = resolve_dtype(dtype, device)
    if adapter_base(name_or_path) is None:
        model = load_model(name_or_path, revision, resolved, trust_remote_code=trust, init=init)
    elif resolved is torch.float32 and not base_init(name_or_path, init).quantization:
        model = load_merged(name_or_path, trust_remote_code=trust, init=init).model
    else:  # merged weights would be rounded, and a small change of large weights be lost
        model = load_beside(name_or_path, resolved, trust_remote_code=trust, init=init)
    model.read_with = init  # type: ignore[assignment]  # so that settings which say the same are no others
    return (model if is_quantized(model) else model.to(device)).eval(), tokenizer  # type: ignore[arg-type]


def load_beside(
    name_or_path: str, dtype: torch.dtype, *, trust_remote_code: bool = False, init: ModelInit = PLAIN
) -> PreTrainedModel:
    """An adapter's base on the CPU with the adapter beside its weights, both in a dtype.

    Raises:
        ModelError, ConfigError: as `load_policy`.
    """
    whole = _load_base(name_or_path, dtype, trust_remote_code, init)
    model = plain_model(with_adapter(whole, name_or_path))
    if is_quantized(model):
        return model
    exact = {name: p.data for name, p in model.named_parameters() if _is_scale(name)}
    cast_weights(model, dtype)
    for name, value in exact.items():
        model.get_parameter(name).data = value
    return model


def _is_scale(name: str) -> bool:
    """Whether a weight is DoRA's length of others, of which a rounding would be one of all of them."""
    return ".lora_magnitude_vector." in name


def load_merged(name_or_path: str, *, trust_remote_code: bool = False, init: ModelInit = PLAIN) -> Merged:
    """An adapter's base in float32 on the CPU, with the adapter merged in.

    Raises:
        ModelError, ConfigError: as `load_policy`.
    """
    return merged(_load_base(name_or_path, torch.float32, trust_remote_code, init), name_or_path)


def _load_base(adapter: str, dtype: torch.dtype, trust_remote_code: bool, init: ModelInit) -> PreTrainedModel:
    name, revision = adapter_base(adapter) or ("", None)
    init = base_init(adapter, init)
    if init.gguf_file is None:
        check_local_path(name, "base_model_name_or_path")
    model = load_model(name, revision, dtype, trust_remote_code=trust_remote_code, init=init)
    if (trained := read_generation_config(adapter)) is not None:  # with which ids it was trained to end
        model.generation_config = trained
    return model


def widened(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model, its half-precision weights held in a wider dtype: same numbers, exacter products."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.to(dtype)
    return model


def load_model(
    name_or_path: str,
    revision: str | None,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> PreTrainedModel:
    """A causal language model on the CPU, with every weight from its checkpoint.

    Raises:
        ModelError: no such model, or weights that the checkpoint does not hold: they would be random.
    """
    subject = f"model_name_or_path={name_or_path!r} could not be loaded"
    read_config(name_or_path, revision, subject=subject, trust_remote_code=trust_remote_code, init=init)
    model, info = read_model(
        AutoModelForCausalLM,
        name_or_path,
        revision,
        subject=subject,
        trust_remote_code=trust_remote_code,
        init=init,
        dtype=dtype,
        ignore_mismatched_sizes=True,  # they are named below
    )
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
    name_or_path: str,
    tokenizer: Tokenizer,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> frozenset[int]:
    """The same of a model that is not loaded, or of an adapter, as it would be if it were.

    Raises:
        ModelError: no readable config.
    """
    trained = read_generation_config(name_or_path, revision)
    if (base := adapter_base(name_or_path)) is not None:
        init = base_init(name_or_path, init)
        name_or_path, revision = base
        trained = trained or read_generation_config(name_or_path, revision)
    config = read_config(name_or_path, revision, trust_remote_code=trust_remote_code, init=init)
    return _first_end_ids(trained or GenerationConfig.from_model_config(config), config, tokenizer)


def _first_end_ids(*owners: Any) -> frozenset[int]:
    for owner in owners:
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list | tuple) else [ids])
    return frozenset()


def stated_limits(config: Any) -> tuple[int | None, int | None]:
    """The context window (most tokens of prompt and completion together), and how many token embeddings there are.

    Either is None where the config says nothing. Of LongRoPE the window is what it was before it was stretched:
    past that, transformers turns all positions by other angles, and a completion would be drawn by two laws.

    Raises:
        ModelError: a limit that is no number.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "vocab_size")]
    for name, limit in zip(("max_position_embeddings", "vocab_size"), limits, strict=True):
        if limit is not None and type(limit) is not int:
            raise ModelError(f"the model's config has {name}={limit!r}, which must be a whole number")
    windows = [limits[0], *_before_longrope(text)]
    known = [window for window in windows if type(window) is int and window > 0]  # -1 stands for no window
    return min(known, default=None), limits[1]


def _before_longrope(config: Any) -> Iterator[Any]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (rope, *rope.values()):  # of all layers, or by their type
        if isinstance(part, dict) and "longrope" in (part.get("rope_type"), part.get("type")):
            yield part.get("original_max_position_embeddings")
            yield getattr(config, "original_max_position_embeddings", None)


def disable_dropout(model: nn.Module) -> None:
    """Dropout and jitter off for good: the policy that is trained must be the one that draws.

    The model's own config, which is saved with it, keeps its rates; parts that read them get a copy without.
    """
    quiet: dict[int, PretrainedConfig] = {}
    for name, module in model.named_modules():
        if "lora_dropout" in name.split("."):
            continue  # of an adapter's own training; see `adapters.adapter_dropout`
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _silence(vars(module))  # rates handed to functional.dropout, as OPT does
        config = getattr(module, "config", None)
        if module is not model and isinstance(config, PretrainedConfig):  # read at each pass, as Falcon does
            if id(config) not in quiet:
                quiet[id(config)] = copy.copy(config)
                _silence(vars(quiet[id(config)]))
            module.config = quiet[id(config)]


def _silence(settings: dict[str, Any]) -> None:
    """Set rates of noise to 0."""
    for name, value in settings.items():
        # Phi-MoE's router_jitter_noise is a threshold, and part of the model in evaluation too.
        if (
            isinstance(value, float)
            and name != "router_jitter_noise"
            and any(part in name for part in _NOISE)
        ):
            settings[name] = 0.0


_NOISE = ("drop", "jitter")


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
