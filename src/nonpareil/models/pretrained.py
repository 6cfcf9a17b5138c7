"""The one way to `from_pretrained`: no code of a model's own unasked, no question asked, one line for any damage.

transformers reads configs, tokenizers and weights that others wrote, and raises whatever their damage leads to.
"""

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, ModelError, NonpareilError
from nonpareil.models.gguf_file import (
    ARCHITECTURES,
    as_plain,
    check_gguf,
    check_read_whole,
    header,
    mended,
    own_tokenizer,
)
from nonpareil.models.hub import hub_answers, hub_or_cache, missing, nearest_path
from nonpareil.models.model_init import PLAIN, ModelInit, check_known
from nonpareil.models.quantized import keep_layout
from nonpareil.terminal import reason_of

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of them lies in every directory of a model."""
TRUST = "trust_remote_code"
DAMAGED = "; one of its files is damaged, or of another version of transformers: save or fetch it again"


def holds_model(folder: Path) -> bool:
    """Whether a model or an adapter was saved there."""
    return any((folder / name).is_file() for name in MODEL_FILES)


def check_local_path(
    name_or_path: str, field: str, needs: tuple[str, ...] = MODEL_FILES, revision: str | None = None
) -> None:
    """Refuse a name that is a path to nowhere before a hub is asked for it.

    Raises:
        ModelError: the name looks like a path and no directory is there, or one without any of the files it needs.
        ConfigError: a revision of a directory, which has none.
    """
    path = Path(name_or_path)
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1
    if path.is_dir():
        if not any((path / name).is_file() for name in needs):
            raise ModelError(
                f"{field}={name_or_path!r} has no {needs[0]}; give a Hugging Face model directory"
            )
        if revision is not None:
            option = field.replace("name_or_path", "revision") if "name_or_path" in field else "revision"
            raise ConfigError(
                f"{option}={revision!r} is read for hub models only, and {field}={name_or_path!r} is a directory; "
                f"remove it"
            )
    elif path.exists() or path.is_symlink() or (looks_like_path and "/" in name_or_path):
        reason = missing(name_or_path) if path.is_symlink() else "no such directory"
        remedy = f"give a model directory or a hub name{nearest_path(name_or_path)}"
        if name_or_path.startswith("~") and path.expanduser().is_dir():
            remedy = f"~ is not read here, so give the whole path, {str(path.expanduser())!r}"
        raise ModelError(f"{field}={name_or_path!r}: {reason}; {remedy}")


@contextmanager
def reading(name_or_path: str, subject: str, remedy: str = "") -> Iterator[None]:
    """Whatever goes wrong within becomes one line that begins with `subject` and ends with `remedy`.

    Raises:
        ModelError: in place of any other error than ours.
    """
    try:
        with hub_or_cache(name_or_path):
            yield
    except (NonpareilError, MemoryError):
        raise
    except Exception as error:
        if TRUST in str(error):
            raise ModelError(
                f"{name_or_path!r} brings code of its own (auto_map), which could do anything here; read it, then "
                f"give {TRUST}=true to run it"
            ) from error
        if not Path(name_or_path).expanduser().is_dir():
            absent = isinstance(error, OSError) and not hub_answers()
            reason, remedy = missing(name_or_path) if absent else _reason(error), nearest_path(name_or_path)
        else:
            reason = _reason(error)
            if not isinstance(error, OSError | ValueError):  # no words of transformers' for what it met
                remedy = remedy or DAMAGED
        raise ModelError(f"{subject}: {reason}{remedy}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "its weights are no plain tensors but a pickle that could run code; save them as safetensors"
    return reason_of(error)


def read_config(
    name_or_path: str,
    revision: str | None = None,
    *,
    subject: str = "",
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> Any:
    """The configuration of a model, with the settings that `init` gives it.

    Raises:
        ModelError: none that can be read.
        ConfigError: an argument of `init` that nothing would read.
    """
    subject = subject or f"{name_or_path!r} has no readable config"
    if init.gguf_file is not None:
        path = check_gguf(name_or_path, init.gguf_file)
        state = (path.stat().st_size, path.stat().st_mtime_ns)
        with reading(name_or_path, subject):
            config = copy.deepcopy(_gguf_config(name_or_path, init.gguf_file, *state))
            check_known(init.kwargs.keys() - config.to_dict().keys(), config.to_dict(), name_or_path)
            for name, value in init.kwargs.items():
                setattr(config, name, value)
        return config
    with reading(name_or_path, subject):
        config, unused = AutoConfig.from_pretrained(
            name_or_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            return_unused_kwargs=True,
            **init.kwargs,
        )
        check_known(unused.keys() & init.kwargs.keys(), config.to_dict(), name_or_path)
        return config


@cache
def _gguf_config(folder: str, file: str, size: int, changed: int) -> Any:
    """Read once, which takes seconds."""
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    if config.model_type not in ARCHITECTURES:
        raise ModelError(f"{file!r} would be read as {config.model_type!r}, which is not known to be right")
    if head_dim := header(Path(folder).expanduser() / file)[0].get(
        f"{config.model_type}.attention.key_length"
    ):
        config.head_dim = int(head_dim)  # of qwen3 transformers takes its own number for it
    return config


def read_generation_config(name_or_path: str, revision: str | None = None) -> GenerationConfig | None:
    """How a model is meant to generate; None where nothing says so.

    Raises:
        ModelError: a file that is there and cannot be read.
    """
    folder = Path(name_or_path).expanduser()
    with reading(name_or_path, f"{name_or_path!r} has a generation_config.json that cannot be read"):
        if folder.is_dir() and not (folder / "generation_config.json").exists():
            return None
        try:
            config = GenerationConfig.from_pretrained(name_or_path, revision=revision or "main")
        except OSError:
            if folder.is_dir():
                raise
            return None  # of a hub model there need not be one
        ends = config.eos_token_id
        if ends is not None and not all(
            type(end) is int for end in (ends if isinstance(ends, list) else [ends])
        ):
            raise TypeError(f"eos_token_id={ends!r} is no token id and no list of them")
        return config


def read_tokenizer(
    name_or_path: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> Tokenizer:
    """A tokenizer that has tokens; of a GGUF file its own, where none lies beside it.

    Raises:
        ModelError: none that can be read.
    """
    remedy = "; save one there with tokenizer.save_pretrained(...)"
    from_file = {} if gguf_file is None or own_tokenizer(name_or_path) else {"gguf_file": gguf_file}
    with reading(name_or_path, f"no tokenizer could be loaded from {name_or_path!r}", remedy):
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code, **from_file
        )
        if from_file:
            mended(tokenizer, Path(name_or_path).expanduser() / str(gguf_file))
        if not isinstance(tokenizer.model_max_length, int | float):
            raise TypeError(f"model_max_length={tokenizer.model_max_length!r} is no number of tokens")
        if len(tokenizer) == 0:  # what AutoTokenizer answers for some directories that hold none
            raise ModelError(f"no tokenizer in {name_or_path!r}{remedy}")
    return tokenizer


def read_model(
    auto_class: Any,
    name_or_path: str,
    revision: str | None = None,
    *,
    subject: str,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
    **settings: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of an auto class on the CPU, and transformers' account of which weights it found.

    Weights come from safetensors, or from a pickle of plain tensors; no other pickle is read.

    Raises:
        ModelError: it cannot be loaded, or holds weights that are no numbers.
    """
    with reading(name_or_path, subject):
        config = read_config(name_or_path, init=init) if init.gguf_file else None
        read_generation_config(name_or_path, revision)  # transformers passes over one that it cannot read
        model, info = auto_class.from_pretrained(
            name_or_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **init.on_model(settings.get("dtype")),
            **({} if config is None else {"config": config}),
            **settings,
        )
        if init.gguf_file is not None:
            check_read_whole(model, Path(name_or_path).expanduser() / init.gguf_file)
            as_plain(model)
        if init.quantization:
            keep_layout(model)
        check_finite(model, name_or_path)
    return model, info


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Refuse a model with a weight that is NaN or infinite: its scores and draws would mean nothing.

    Raises:
        ModelError: naming the first.
    """
    for parameter_name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.numel() or parameter.dtype not in _NUMBERS:
            continue
        if hasattr(parameter, "quant_state"):  # 4 bits each, whatever type they are packed into
            continue
        bounds = torch.stack(parameter.detach().aminmax())  # NaN where any is; no copy of the weights
        if not bounds.isfinite().all():
            found = "NaN" if bounds.isnan().any() else "infinite"
            raise ModelError(
                f"{name!r} holds weights that are {found} (first: {parameter_name}); the file is damaged, or its "
                "training diverged: take an earlier checkpoint"
            )


_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
