"""The one way to `from_pretrained`: no code of a model's own unasked, no question asked, one line for any damage.

transformers reads configs, tokenizers and weights that others wrote, and raises whatever their damage leads to.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, ModelError, NonpareilError
from nonpareil.models.hub import hub_answers, hub_or_cache, missing, nearest_path
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
    name_or_path: str, revision: str | None = None, *, subject: str = "", trust_remote_code: bool = False
) -> Any:
    """The configuration of a model.

    Raises:
        ModelError: none that can be read.
    """
    with reading(name_or_path, subject or f"{name_or_path!r} has no readable config"):
        return AutoConfig.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )


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
    name_or_path: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> Tokenizer:
    """A tokenizer that has tokens.

    Raises:
        ModelError: none that can be read.
    """
    remedy = "; save one there with tokenizer.save_pretrained(...)"
    with reading(name_or_path, f"no tokenizer could be loaded from {name_or_path!r}", remedy):
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
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
    **settings: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of an auto class on the CPU, and transformers' account of which weights it found.

    Weights come from safetensors, or from a pickle of plain tensors; no other pickle is read.

    Raises:
        ModelError: it cannot be loaded, or holds weights that are no numbers.
    """
    with reading(name_or_path, subject):
        read_generation_config(name_or_path, revision)  # transformers passes over one that it cannot read
        model, info = auto_class.from_pretrained(
            name_or_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **settings,
        )
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
        bounds = torch.stack(parameter.detach().aminmax())  # NaN where any is; no copy of the weights
        if not bounds.isfinite().all():
            found = "NaN" if bounds.isnan().any() else "infinite"
            raise ModelError(
                f"{name!r} holds weights that are {found} (first: {parameter_name}); the file is damaged, or its "
                "training diverged: take an earlier checkpoint"
            )


_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
