"""Load a policy straight into shards: every process reads each weight file, and keeps its part alone."""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.loading import check_local_path


def empty_policy(name_or_path: str) -> tuple[PreTrainedModel, Path] | None:
    """The model in float32 without its weights, and the folder that has them.

    None where it must be loaded whole: an adapter, or weights that are stored under other names than the model's.

    Raises:
        ModelError: no such model.
    """
    check_local_path(name_or_path, "model_name_or_path")
    if adapter_base(name_or_path) is not None:
        return None
    folder = model_folder(name_or_path)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"model_name_or_path={name_or_path!r} could not be loaded: {error}") from error
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    stored = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored |= set(tensors.keys())
    names: dict[int, set[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():  # tied weights have several names
        names.setdefault(id(value), set()).add(name)
    if not all(own & stored for own in names.values()):
        return None
    if (folder / "generation_config.json").is_file():  # which ids end a completion, for one
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = name_or_path
    return model.eval(), folder


def model_folder(name_or_path: str, revision: str | None = None) -> Path:
    """The folder of a model, downloaded where it is a hub's.

    Raises:
        ModelError: there is no such model.
    """
    if Path(name_or_path).expanduser().is_dir():
        return Path(name_or_path).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # weights and tokenizer
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"model_name_or_path={name_or_path!r} could not be loaded: {error}") from error
