"""Folders of groups that a server fills: as many shards as were served so far, each whole, the oldest perhaps gone.

Such a folder has no list of prompts that it must come to hold. What is there is all there is; only a hole between
two shards means that something was lost.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonpareil.errors import DataError
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.store import DATA_FOLDER
from nonpareil.rollouts.summaries import ShardSummary, summary_of

SERVED = "served"
"""Of a manifest, and of what it says under `draw`: True where a server fills the folder."""
_PREFIX = "shard-"


def is_served_folder(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest, or its `draw`, is that of a folder which a server fills."""
    return bool(manifest.get(SERVED))


def index_of(shard: Path) -> int | None:
    """A shard's place in its folder by its name; None where the name is no shard's."""
    number = shard.stem.removeprefix(_PREFIX)
    return int(number) if shard.stem.startswith(_PREFIX) and number.isdecimal() else None


def served_shards(folder: Path) -> list[Path]:
    """A folder's shards, in the order served.

    Raises:
        DataError: a Parquet file that is no shard, or a shard that is missing between two others.
    """
    files = list((folder / DATA_FOLDER).glob("*.parquet"))
    for file in files:
        if index_of(file) is None:
            raise DataError(
                f"{str(file)!r} is none of the shards that were served; move it out of the folder"
            )
    shards = sorted(files, key=lambda file: index_of(file) or 0)
    numbers = [index_of(file) or 0 for file in shards]
    if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        gone = next(n for n in range(numbers[0], numbers[-1]) if n not in numbers)
        raise DataError(
            f"{folder / DATA_FOLDER} lacks {_PREFIX}{gone:05d}.parquet between its shards; put it back, or read "
            "the shards one by one"
        )
    return shards


def summarized(folder: Path, manifest: Mapping[str, Any]) -> list[tuple[Path, ShardSummary]]:
    """A folder's shards, each counted, and found to be of this folder and in its place.

    Raises:
        DataError: as `served_shards`; or a shard of another folder, another place or another size of groups.
    """
    draw, found = manifest["draw"], []
    for file in served_shards(folder):
        one = summary_of(file)
        if one.notes.draw != draw:
            raise DataError(
                f"{file} is of another folder: it was drawn with other settings; move it out of this one"
            )
        if one.notes.index != index_of(file):
            raise DataError(
                f"{file} stands in another's place: it is shard {one.notes.index}; put back the right one"
            )
        if one.group_sizes - {draw["num_generations"]}:
            raise DataError(
                f"{file} holds groups of {sorted(one.group_sizes)} completions, and its folder's have "
                f"{draw['num_generations']}"
            )
        found.append((file, one))
    return found


def named_folders(folder: Path, most: int = 5) -> str:
    """The folders of groups right below one, in words; "" where there are none."""
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    words = ", ".join(str(path) for path in found[:most])
    return words + (f" and {len(found) - most} more" if len(found) > most else "")
