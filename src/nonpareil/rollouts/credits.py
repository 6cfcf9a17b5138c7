"""A folder of credits: safetensors files beside a manifest that says of which policy, groups and value they are.

A file holds the credits of some prompts, one completion behind another, and is written whole or not at all; a kill
costs one. Reading maps files into memory: what is not asked for is not held.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nonpareil.credits import Credits, CreditsByPrompt
from nonpareil.errors import ConfigError, DataError
from nonpareil.files import jsonable, write_bytes, write_json
from nonpareil.records import refuse_repeated
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.rollouts.store import DATA_FOLDER
from nonpareil.settings import differing, flat
from nonpareil.terminal import printable

FORMAT = 1
METADATA_KEY = "nonpareil.credits"
COLUMNS = ("token_ids", "weights", "advantages", "prefix_values")
PLACES = ("prompt", "completion", "length")
"""Of each completion: which of the file's prompts, which of its group's completions, and its tokens."""


@dataclass(frozen=True)
class CreditsSource:
    """What credits were made of."""

    policy: str
    """The fingerprint of the model whose next tokens they are."""
    groups: str
    """As `groups_identity` has it."""
    value: Any
    """All that decides the value, as JSON has it."""
    rewards: Any = None
    """All that decides the groups' rewards, which the value is about, as JSON has it; None is not compared."""

    def to_dict(self) -> dict[str, Any]:
        """As files keep it."""
        return jsonable(asdict(self))


class _Place(NamedTuple):
    file: Any
    start: int
    length: int


class StoredCredits(Mapping):
    """The credits of a folder by prompt id, read as they are asked for; see `credits.CreditsByPrompt`."""

    def __init__(self, source: CreditsSource, places: dict[str, list[_Place | None]]):
        self.source, self._places = source, places

    def __getitem__(self, prompt_id: str) -> list[Credits | None]:
        """Those of a prompt's completions, in the order of its group; None where one has none."""
        return [None if place is None else _read(place) for place in self._places[prompt_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def groups_identity(folder: Path) -> str:
    """How the groups of a folder were drawn, as a hash; scoring them anew changes nothing.

    Raises:
        DataError: no folder of groups.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"groups={str(folder)!r} has no {MANIFEST}, so that credits cannot be told to be of it; give a folder "
            "written by `nonpareil sample`"
        )
    return hashlib.sha256(json.dumps(manifest["draw"], sort_keys=True).encode()).hexdigest()[:16]


def begin_credits(folder: Path, source: CreditsSource, shards: int) -> None:
    """Say of what a folder's credits are and how many files they have, before the first; or check that it is so.

    Raises:
        ConfigError: there are credits of something else, naming what differs.
        DataError: a manifest that is damaged, or none of credits.
    """
    manifest = {"format": FORMAT, "kind": "credits", "source": source.to_dict(), "shards": shards}
    if (folder / MANIFEST).exists():
        there = _read_manifest(folder)
        lines = [
            f"  {key}: {then!r} there, {now!r} now"
            for key, (then, now) in differing(flat(there), flat(manifest)).items()
        ]
        if lines:
            raise ConfigError(
                f"{str(folder)!r} holds credits made with other settings:\n" + "\n".join(lines) + "\n"
                "Give the settings that they have, or another folder; to make them anew, delete them, or give "
                "--overwrite where `nonpareil distill` made them."
            )
        return
    write_json(folder / MANIFEST, {**manifest, "sha256": _seal(manifest)})


def credits_path(folder: Path, index: int) -> Path:
    """Where the file of an index lies."""
    return folder / DATA_FOLDER / f"credits-{index:05d}.safetensors"


def write_credits(folder: Path, index: int, credits: CreditsByPrompt, source: CreditsSource) -> Path:
    """Write the credits of some prompts as one file, in one step; those of no token are as good as None.

    Raises:
        ConfigError: completions with different numbers of candidates.
    """
    found = [
        (row, place, each)
        for row, of_prompt in enumerate(credits.values())
        for place, each in enumerate(of_prompt)
        if each is not None and len(each)
    ]
    widths = {each.token_ids.shape[1] for _, _, each in found}
    if len(widths) > 1:
        raise ConfigError(f"credits with {sorted(widths)} candidates; give all as many for each token")
    rows = np.array([(row, place, len(each)) for row, place, each in found], np.int32).reshape(
        -1, len(PLACES)
    )
    arrays = {name: np.ascontiguousarray(rows[:, column]) for column, name in enumerate(PLACES)}
    for name in COLUMNS:
        parts = [getattr(each, name) for _, _, each in found] or [np.zeros((0, 1), np.float32)]
        arrays[name] = np.ascontiguousarray(np.concatenate(parts))
    said = {
        "source": source.to_dict(),
        "index": index,
        "prompts": list(credits),
    }
    said["sha256"] = _digest(said, (arrays[name] for name in (*PLACES, *COLUMNS)))
    return write_bytes(credits_path(folder, index), save(arrays, {METADATA_KEY: json.dumps(said)}))


def has_credits(folder: Path, index: int, source: CreditsSource) -> bool:
    """Whether the file of an index is there, whole and of this source; else it is to be written (anew)."""
    try:
        _open(credits_path(folder, index), index, source.to_dict())
    except DataError:
        return False
    return True


def read_source(folder: Path) -> CreditsSource:
    """What a folder's credits were, or are to be, made of; their files are not looked at.

    Raises:
        DataError: no credits, or a manifest that is damaged.
    """
    return CreditsSource(**_read_manifest(folder)["source"])


def read_credits(folder: str | Path) -> StoredCredits:
    """The credits of a folder whose every file is there, each found whole to the last bit.

    Raises:
        DataError: no such folder, no credits, some that are not finished, or a file that is damaged, of another
            run or beside the run's.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    paths = [credits_path(folder, index) for index in range(manifest["shards"])]
    foreign = sorted({*(folder / DATA_FOLDER).glob("*.safetensors")} - {*paths})
    if foreign:
        raise DataError(
            f"{str(foreign[0])!r} is none of the {len(paths)} files of its credits; move it out of the folder"
        )
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder} is not finished: {len(missing)} of {len(paths)} files are missing (first {missing[0]}); run "
            "what makes the credits again with the same settings"
        )
    places: dict[str, list[_Place | None]] = {}
    prompts: list[str] = []
    for index, path in enumerate(paths):
        file, said = _open(path, index, manifest["source"])
        prompts += said["prompts"]
        _add_places(places, file, said["prompts"])
    refuse_repeated(prompts, str(folder))
    return StoredCredits(CreditsSource(**manifest["source"]), places)


def _add_places(places: dict[str, list[_Place | None]], file: Any, prompts: list[str]) -> None:
    rows, completions, lengths = (file.get_tensor(name).tolist() for name in PLACES)
    start = 0
    for row, completion, length in zip(rows, completions, lengths, strict=True):
        of_prompt = places.setdefault(prompts[row], [])
        of_prompt += [None] * (completion + 1 - len(of_prompt))
        of_prompt[completion] = _Place(file, start, length)
        start += length


def _read(place: _Place) -> Credits:
    part = slice(place.start, place.start + place.length)
    return Credits(*(place.file.get_slice(name)[part] for name in COLUMNS))


def _open(path: Path, index: int, source: Any) -> tuple[Any, dict[str, Any]]:
    """A file, mapped into memory and found whole, and what it says of itself.

    Raises:
        DataError: it is missing, damaged, no file of credits, or of another source or place.
    """
    try:
        file = safe_open(path, framework="numpy")
        content = (file.metadata() or {}).get(METADATA_KEY)
        said = json.loads(content) if content else None
        if not isinstance(said, dict) or not {*PLACES, *COLUMNS} <= {*file.keys()}:
            raise DataError(f"{path} holds no credits; move it out of the folder")
        seal = said.pop("sha256", None)
        whole = seal == _digest(said, (file.get_tensor(name) for name in (*PLACES, *COLUMNS)))
    except (SafetensorError, OSError, ValueError) as error:
        raise _corrupt(path, printable(str(error))) from error
    if not whole:
        raise _corrupt(path, "its checksum does not hold")
    if (said["source"], said["index"]) != (source, index):
        raise DataError(
            f"{path} is of another run or place: it is file {said['index']} of credits made of "
            f"{printable(json.dumps(said['source']))}; delete it, and run what makes the credits again"
        )
    return file, said


def _corrupt(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is corrupt ({reason}); delete it, and run what makes the credits again: only that file is made "
        "anew"
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{str(folder)!r} holds no credits: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is corrupt ({printable(str(error))}); make the credits anew") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "credits":
        raise DataError(f"{path} is no manifest of credits; give the folder that they are in")
    seal = manifest.pop("sha256", None)
    if seal != _seal(manifest):
        raise DataError(
            f"{path} is corrupt (its checksum does not hold: it was damaged or edited); make the credits anew"
        )
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(said: Mapping[str, Any], arrays: Iterator[np.ndarray]) -> str:
    """Of all that a file holds."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
