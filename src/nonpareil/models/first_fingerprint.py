"""The fingerprint of groups drawn before every tensor counted, so that they stay usable.

Only for comparing with what such a manifest says; it leaves out most matrices of a small file.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nonpareil.models.adapters import adapter_base
from nonpareil.models.fingerprint import VERSION, own_code, weight_files

_BLOCKS = 64
_BLOCK_BYTES = 64 * 1024
_WHOLE_FILES = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def renewed(stored: Any, here: Any) -> Any:
    """Settings as a manifest keeps them, with first fingerprints in the present form where the files are still so.

    `here` are the same settings as they are now, with the `path` of each model beside its `fingerprint`.
    """
    if isinstance(stored, Mapping) and isinstance(here, Mapping):
        fresh = {key: renewed(value, here.get(key)) for key, value in stored.items()}
        return {**fresh, "fingerprint": _renewed(stored, here)} if "fingerprint" in stored else fresh
    if isinstance(stored, list) and isinstance(here, list) and len(stored) == len(here):
        return [renewed(one, other) for one, other in zip(stored, here, strict=True)]
    return stored


def _renewed(stored: Mapping[str, Any], here: Mapping[str, Any]) -> Any:
    then, now, path = stored["fingerprint"], here.get("fingerprint"), here.get("path")
    both = str(then).startswith("sha256:") and str(now).startswith(f"{VERSION}:")
    if not both or not isinstance(path, str) or not Path(path).expanduser().is_dir():
        return then
    return now if _first_fingerprint(path, bool(here.get("trust_remote_code"))) == then else then


@lru_cache
def _first_fingerprint(path: str, with_code: bool) -> str | None:
    """None of a model of the hub: it was not the first form's sha256, but a commit."""
    directory = Path(path).expanduser()
    if (base := adapter_base(path)) is not None:
        below = _first_fingerprint(base[0], with_code) if Path(base[0]).is_dir() else None
        both = f"{_directory_fingerprint(directory, with_code)} {below}"
        return None if below is None else f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"
    return _directory_fingerprint(directory, with_code)


def _directory_fingerprint(directory: Path, with_code: bool) -> str:
    digest = hashlib.sha256()
    for name in (*_WHOLE_FILES, *own_code(directory, with_code)):
        if (directory / name).is_file():
            digest.update(f"{name}\n".encode() + (directory / name).read_bytes())
    for file in weight_files(directory):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        starts = {max(0, size - _BLOCK_BYTES) * block // (_BLOCKS - 1) for block in range(_BLOCKS)}
        with file.open("rb") as stream:
            for start in sorted(starts):
                stream.seek(start)
                digest.update(stream.read(_BLOCK_BYTES))
    return f"sha256:{digest.hexdigest()}"
