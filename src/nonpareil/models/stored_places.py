"""Which file of a model's folder holds each weight: what transformers would read, and no file beside it."""

import json
import re
from pathlib import Path

from safetensors import safe_open

from nonpareil.errors import ModelError
from nonpareil.models.pretrained import reading
from nonpareil.text_files import parse_json, read_text

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))


def stored_places(folder: Path) -> dict[str, Path]:
    """The file of each tensor, by the name that it is stored under; nothing where there are no safetensors.

    `model.safetensors` where it is there, else the files that the index names. Others, such as shards that an
    earlier save left behind, are never read.

    Raises:
        ModelError: files that are missing or damaged, or that lack a tensor which the index has them hold.
        DataError: an index that is no JSON.
    """
    with reading(str(folder), f"the weights in {str(folder)!r} could not be read"):
        if (folder / WHOLE).exists():
            return dict.fromkeys(_names_in(folder / WHOLE), folder / WHOLE)
        if not (folder / INDEX).exists():
            return {}
        places = _indexed(folder)
        for file in sorted(set(places.values())):
            held = _names_in(file)
            if lacking := [name for name, place in places.items() if place == file and name not in held]:
                raise ModelError(
                    f"{str(file)!r} does not hold {lacking[0]}, which {INDEX} says it does; its files are of two "
                    "saves: save or fetch the model again"
                )
    return places


def stale_shards(folder: Path) -> set[str]:
    """Names of shards, as transformers numbers them, that an earlier save left behind: no index names them.

    Beside a whole file all are, where there is no index. Without either, or with an index that cannot be read,
    none is: what cannot be loaded is refused where it is.
    """
    found: set[str] = set()
    for stem, ending in _KINDS:
        shard, index = (
            re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.{ending}"),
            folder / f"{stem}.{ending}.index.json",
        )
        named: set[str] = set()
        if index.is_file():
            try:
                named = set(json.loads(index.read_bytes())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        elif not (folder / f"{stem}.{ending}").is_file():
            continue
        found |= {file.name for file in folder.glob(f"{stem}-*") if shard.fullmatch(file.name)} - named
    return found


def _indexed(folder: Path) -> dict[str, Path]:
    file = folder / INDEX
    found = parse_json(read_text(file), str(file))
    weights = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise ModelError(f"{str(file)!r} has no weight_map of names to files; save or fetch the model again")
    return {name: folder / place for name, place in weights.items()}


def _names_in(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())
