"""Load a policy straight into shards: every process reads each weight file, and keeps its part alone."""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from nonpareil.models.adapters import adapter_base
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.models.pretrained import check_local_path, read_config, read_generation_config, reading
from nonpareil.models.stored_places import stored_places


def empty_policy(
    name_or_path: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> tuple[PreTrainedModel, Path] | None:
    """The model in float32 without its weights, and the folder that has them.

    None where it must be loaded whole: an adapter, a GGUF file, or weights that are stored under other names than
    the model's.

    Raises:
        ModelError: no such model, or one whose files of weights are missing or damaged.
        DataError: an index of theirs that is no JSON.
    """
    if init.gguf_file is not None or init.quantization:
        return None
    check_local_path(name_or_path, "model_name_or_path")
    if adapter_base(name_or_path) is not None:
        return None
    folder = model_folder(name_or_path, revision)
    subject = f"model_name_or_path={name_or_path!r} could not be loaded"
    config = read_config(str(folder), subject=subject, trust_remote_code=trust_remote_code, init=init)
    attention = {"attn_implementation": init.attn_implementation} if init.attn_implementation else {}
    with reading(str(folder), subject):
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code, **attention
            )
        model.tie_weights()
    stored = stored_places(folder).keys()
    names: dict[int, set[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():  # tied weights have several names
        names.setdefault(id(value), set()).add(name)
    if not all(own & stored for own in names.values()):
        return None
    if (generation_config := read_generation_config(str(folder))) is not None:  # which ids end a completion
        model.generation_config = generation_config
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

    files = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py"]  # weights, tokenizer, own code
    with reading(name_or_path, f"model_name_or_path={name_or_path!r} could not be loaded"):
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=files))
