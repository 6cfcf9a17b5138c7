"""A short name for a model's content, so that a manifest notices when the weights behind a path change."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nonpareil.checksums import file_sha256
from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.models.pretrained import read_config
from nonpareil.models.stored_places import stale_shards

VERSION = "sha256-2"
"""Of the formula, in front of each fingerprint; those of `models.first_fingerprint` begin with "sha256"."""
BUDGET = 64 * 1024**2
"""Bytes of weights that are read at most, save for the least of each tensor; a folder with fewer counts whole."""
LEAST = 4096
"""Bytes that are read of each tensor at least, or all it has; numbers, of a model in memory."""
STRETCHES = 4
"""Where a tensor is read: at its beginning, twice inside, and at its end."""
WHOLE_FILES = (
    "config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def fingerprint(
    path: str, revision: str | None = None, *, trust_remote_code: bool = False, init: ModelInit = PLAIN
) -> str:
    """The content of a model directory ("sha256-2:..."), or the commit of a hub id's revision ("commit:...").

    Configuration and tokenizer files count whole, and so does a model's own code where it is run. Of weights every
    tensor counts: whole where a folder has at most 64 MiB of them, else by its name, type, shape and an equal share
    of 64 MiB (4 KiB at least), read in four places from its beginning to its end. A matrix that was trained,
    rounded or replaced is always noticed; a few numbers changed inside a large one may not be. Weights in a pickle
    carry their checksums, which count too. Shards of an earlier save, which the index does not name, do not count.
    The same weights split into other files have another fingerprint. So have the same files under another `init`,
    but for attention; of an adapter that is what its base was read with.

    Raises:
        ModelError: neither a directory nor a hub id whose commit is known.
    """
    directory = Path(path).expanduser()
    base = adapter_base(path)
    if base is None and init.law:
        if init.gguf_file is not None:
            plain = _gguf_fingerprint(directory / init.gguf_file)
        else:
            plain = fingerprint(path, revision, trust_remote_code=trust_remote_code)
        law = {
            name: value for name, value in init.law.items() if name != "gguf_file"
        }  # by content, not by name
        both = f"{plain} {json.dumps(law, sort_keys=True)}"
        return f"{VERSION}:{hashlib.sha256(both.encode()).hexdigest()}"
    if base is not None:
        # The same adapter on another base is another model.
        below = fingerprint(*base, trust_remote_code=trust_remote_code, init=init.over(ModelInit.kept(path)))
        both = f"{_directory_fingerprint(directory, trust_remote_code)} {below}"
        return f"{VERSION}:{hashlib.sha256(both.encode()).hexdigest()}"
    if directory.is_dir():
        return _directory_fingerprint(directory, trust_remote_code)
    subject = f"no model directory and no known hub model at {path!r}"
    config = read_config(path, revision, subject=subject, trust_remote_code=trust_remote_code)
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        raise ModelError(f"the commit of {path!r} is unknown; give a local directory")
    return f"commit:{commit}"


def _gguf_fingerprint(file: Path) -> str:
    """Of a GGUF file, and of a tokenizer beside it."""
    digest = hashlib.sha256(file_sha256(file).encode())
    for name in WHOLE_FILES:
        if (file.parent / name).is_file():
            digest.update(f"{name}\n".encode() + (file.parent / name).read_bytes())
    return digest.hexdigest()


def module_fingerprint(module: nn.Module) -> str:
    """The same for a model in memory: name, type, shape and sum of every weight, and numbers all over it.

    The sum, of the bits as whole numbers, notices any single number that changes.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_bit_sum(tensor)}\n".encode())
        flat = tensor.detach().flatten()
        for start, stop in _stretches(flat.numel(), LEAST):
            digest.update(flat[start:stop].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"{VERSION}:{digest.hexdigest()}"


def _bit_sum(tensor: Tensor) -> int:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers.get(tensor.element_size(), torch.uint8)
    return int(tensor.detach().contiguous().flatten().view(kind).sum(dtype=torch.int64))


def _directory_fingerprint(directory: Path, with_code: bool) -> str:
    digest = hashlib.sha256()
    for name in (*WHOLE_FILES, *own_code(directory, with_code)):
        if (directory / name).is_file():
            digest.update(f"{name}\n".encode() + (directory / name).read_bytes())
    stale = stale_shards(directory)
    files = [(file, _parts(file)) for file in weight_files(directory) if file.name not in stale]
    count = sum(len(parts) for _, parts in files)
    small = sum(part.size for _, parts in files for part in parts) <= BUDGET
    for file, parts in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            for part in parts:
                digest.update(f"{part.name} {part.size}\n".encode())
                for start, stop in _stretches(part.size, part.size if small else max(LEAST, BUDGET // count)):
                    stream.seek(part.start + start)
                    digest.update(stream.read(stop - start))
    return f"{VERSION}:{digest.hexdigest()}"


def own_code(directory: Path, with_code: bool) -> list[str]:
    """A model's own code, where it is run."""
    return sorted(str(file.relative_to(directory)) for file in directory.rglob("*.py")) if with_code else []


def weight_files(directory: Path) -> list[Path]:
    """The files of weights in a folder, by name; shards of an earlier save, which nothing reads, among them."""
    files = [*directory.glob("*.safetensors"), *directory.glob("*.bin")]
    # The Trainer's pickled arguments end in .bin too, and differ between runs with equal weights.
    return sorted((file for file in files if file.name != "training_args.bin"), key=lambda file: file.name)


@dataclass(frozen=True)
class _Part:
    """A tensor, or what a pickle keeps of one, in a file."""

    name: str
    """With all that is known of it without reading it."""
    start: int
    size: int


def _parts(file: Path) -> list[_Part]:
    """All of a file of weights; one that is neither of the two formats, or damaged, is a part as a whole."""
    try:
        read = _zip_parts if zipfile.is_zipfile(file) else _tensor_parts
        return list(read(file))
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return [_Part("", 0, file.stat().st_size)]


def _tensor_parts(file: Path) -> Iterator[_Part]:
    """Of a safetensors file, by its header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("no header of safetensors")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = tensor["data_offsets"]
        if not 0 <= first <= last:
            raise ValueError("no header of safetensors")
        yield _Part(f"{name} {tensor['dtype']} {tensor['shape']}", 8 + length + first, last - first)


def _zip_parts(file: Path) -> Iterator[_Part]:
    """Of a pickle of torch's, which is a zip file, with the checksum of each member."""
    with zipfile.ZipFile(file) as members:
        for member in members.infolist():
            yield _Part(f"{member.filename} {member.CRC}", member.header_offset, member.compress_size)


def _stretches(size: int, share: int) -> list[tuple[int, int]]:
    """Where to read `share` of `size` things: all of them, or four stretches from the first to the last."""
    if size <= share:
        return [(0, size)]
    length = share // STRETCHES
    starts = [(size - length) * i // (STRETCHES - 1) for i in range(STRETCHES)]
    return [(start, start + length) for start in starts]
