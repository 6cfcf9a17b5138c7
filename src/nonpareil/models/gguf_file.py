"""GGUF files, which llama.cpp runs: read by transformers into plain weights, where that is known to be right.

transformers passes over what it does not know of such a file: scaled positions, biases, another splitting of text.
So only what was compared with its own float model is read here.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.hub import nearest_path
from nonpareil.terminal import reason_of

ARCHITECTURES = ("llama", "qwen2", "qwen3")
SPLITTERS = ("smollm", "qwen2", "gpt-2", "default")
"""`tokenizer.ggml.pre`: how text is split before its parts become tokens, where transformers does the same."""
OWN_FOLDER = "take the model's own folder (config.json and safetensors)"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def own_tokenizer(folder: str) -> bool:
    """Whether a tokenizer lies beside the file, which then counts in place of the file's."""
    return all((Path(folder) / name).is_file() for name in TOKENIZER_FILES)


def check_gguf(folder: str, file: str, field: str = "model_name_or_path") -> Path:
    """The path of a GGUF file that can be read here; no weight is read.

    Raises:
        ConfigError: no such file in the folder, or the package gguf is not installed.
        ModelError: a file that is damaged, or of a model that would be read wrongly.
    """
    option = "reference_gguf_file" if field.startswith("reference") else "gguf_file"
    given = f"{option}={file!r}"
    path = Path(folder).expanduser() / file
    if not Path(folder).expanduser().is_dir():
        raise ConfigError(
            f"{given} is read from a folder, and {field}={folder!r} is none; download the file (hf download), and "
            "name its folder"
        )
    if not path.is_file():
        others = sorted(each.name for each in path.parent.glob("*.gguf")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(others)}" if others else nearest_path(str(path))
        raise ConfigError(f"{given}: no such file in {folder!r}{there}")
    if find_spec("gguf") is None:
        raise ConfigError(f'{given} needs the package gguf: pip install "nonpareil[gguf]"')
    _check_header(path, given, own_tokenizer=own_tokenizer(folder))
    return path


def _check_header(path: Path, given: str, *, own_tokenizer: bool) -> None:
    fields, tensors = header(path)
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{given} holds a model of the architecture {architecture!r}; of GGUF files "
            f"only {', '.join(ARCHITECTURES)} are known to be read rightly: {OWN_FOLDER}"
        )
    scaled = [
        name for name in fields if ".rope.scaling." in name and fields[name] not in ("none", "", 0, 1.0)
    ]
    if scaled or any(name.startswith("rope_") for name in tensors):
        what = scaled[0] if scaled else "rope_freqs.weight"
        raise ModelError(
            f"{given} scales its positions ({what}), which transformers does not read from such a file: it would "
            f"be another model; {OWN_FOLDER}"
        )
    turned, length = (
        fields.get(f"{architecture}.{name}") for name in ("rope.dimension_count", "attention.key_length")
    )
    if None not in (turned, length) and turned != length:
        raise ModelError(
            f"{given} turns {turned} of {length} numbers of a head by position, which transformers would not do; "
            f"{OWN_FOLDER}"
        )
    splitter = fields.get("tokenizer.ggml.pre", "default")
    if not own_tokenizer and (fields.get("tokenizer.ggml.model") != "gpt2" or splitter not in SPLITTERS):
        raise ModelError(
            f"{given} has a tokenizer ({fields.get('tokenizer.ggml.model')}, {splitter}) that transformers may "
            f"read otherwise than it was trained; put the model's own {' and '.join(TOKENIZER_FILES)} beside it"
        )


def header(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A file's settings by name, arrays left out, and the names of its tensors; read once, which takes seconds.

    Raises:
        ModelError: it is no GGUF file, or is cut off.
    """
    status = path.stat()
    return _header(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _header(path: Path, size: int, changed: int) -> tuple[dict[str, Any], list[str]]:
    from gguf import GGUFReader, GGUFValueType

    try:
        reader = GGUFReader(path)
        fields = {
            name: each.contents()
            for name, each in reader.fields.items()
            if each.types and each.types[0] is not GGUFValueType.ARRAY
        }
        return fields, [tensor.name for tensor in reader.tensors]
    except Exception as error:
        raise ModelError(f"{str(path)!r} is no GGUF file that can be read: {reason_of(error)}") from error


def mended(tokenizer: Any, path: Path) -> Any:
    """A tokenizer with the special tokens that the file names; transformers takes its first ones for its last.

    Raises:
        ModelError: the file puts a token before each text, and the tokenizer does not.
    """
    fields, _ = header(path)
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for theirs, ours in names.items():
        token_id = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if token_id is not None:
            setattr(tokenizer, f"{ours}_token", tokenizer.convert_ids_to_tokens(int(token_id)))
    begins = fields.get("tokenizer.ggml.add_bos_token") is True
    if begins and tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        raise ModelError(
            f"{str(path)!r} asks for {tokenizer.bos_token!r} before each text, which transformers' tokenizer of it "
            f"does not put there; put the model's own {' and '.join(TOKENIZER_FILES)} beside the file"
        )
    return tokenizer


def as_plain(model: Any) -> None:
    """Let a model that was read from a file be one of plain weights, which it is, and be saved as such."""
    for config in (model.config, model.config.get_text_config()):
        vars(config).pop("quantization_config", None)
        vars(config).pop("_model_name_or_path", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "_is_quantized"):
        vars(model).pop(name, None)


def check_read_whole(model: nn.Module, path: Path) -> None:
    """Refuse a model that lacks what a file holds: transformers passes over tensors that it knows no place for.

    Raises:
        ModelError: with both numbers.
    """
    held = len(header(path)[1])
    read = len({id(weight) for weight in model.parameters()})
    if held != read:
        raise ModelError(
            f"{str(path)!r} holds {held} tensors, and transformers makes a model of {read} from it: what is left "
            f"out would make it another one; {OWN_FOLDER}"
        )
