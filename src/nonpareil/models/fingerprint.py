"""A short name for a model's content, so that a manifest notices when the weights behind a path change."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.pretrained import read_config

BLOCKS = 64
BLOCK_BYTES = 64 * 1024
WHOLE_FILES = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def fingerprint(path: str, revision: str | None = None, *, trust_remote_code: bool = False) -> str:
    """The content of a model directory ("sha256:..."), or the commit of a hub id's revision ("commit:...").

    Weight files are sampled at 64 evenly spaced blocks of 64 KiB, so a 100 GB model costs a few megabytes of
    reading; configuration and tokenizer files count whole, and so does a model's own code where it is run.

    Raises:
        ModelError: neither a directory nor a hub id whose commit is known.
    """
    directory = Path(path).expanduser()
    if (base := adapter_base(path)) is not None:
        # The same adapter on another base is another model.
        below = fingerprint(*base, trust_remote_code=trust_remote_code)
        both = f"{_directory_fingerprint(directory, trust_remote_code)} {below}"
        return f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"
    if directory.is_dir():
        return _directory_fingerprint(directory, trust_remote_code)
    subject = f"no model directory and no known hub model at {path!r}"
    config = read_config(path, revision, subject=subject, trust_remote_code=trust_remote_code)
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        raise ModelError(f"the commit of {path!r} is unknown; give a local directory")
    return f"commit:{commit}"


def module_fingerprint(module: nn.Module) -> str:
    """The same for a model in memory: name, shape, dtype and first and last kilobytes of every weight."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().flatten()
        for part in (flat[:1024], flat[-1024:]):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _directory_fingerprint(directory: Path, with_code: bool) -> str:
    digest = hashlib.sha256()
    code = sorted(str(file.relative_to(directory)) for file in directory.rglob("*.py")) if with_code else []
    for name in (*WHOLE_FILES, *code):
        if (directory / name).is_file():
            digest.update(f"{name}\n".encode() + (directory / name).read_bytes())
    weights = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
    for file in sorted(weights, key=lambda file: file.name):
        # The Trainer's pickled arguments end in .bin too, and differ between runs with equal weights.
        if file.name != "training_args.bin":
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            _update_from_blocks(digest, file)
    return f"sha256:{digest.hexdigest()}"


def _update_from_blocks(digest: "hashlib._Hash", file: Path) -> None:
    last_start = max(0, file.stat().st_size - BLOCK_BYTES)
    starts = {last_start * block // (BLOCKS - 1) for block in range(BLOCKS)}
    with file.open("rb") as stream:
        for start in sorted(starts):
            stream.seek(start)
            digest.update(stream.read(BLOCK_BYTES))
