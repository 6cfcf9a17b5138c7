"""Groups read from disk, a folder's held against its manifest: no shard is missing, foreign or there twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group, refuse_repeated
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.manifest import SEARCH, read_manifest
from nonpareil.rollouts.served import is_served_folder, named_folders, summarized
from nonpareil.rollouts.store import (
    DATA_FOLDER,
    ShardNotes,
    notes_of,
    read_columns,
    read_shard,
    shard_path,
    to_groups,
)
from nonpareil.rollouts.summaries import ShardSummary, summary_of
from nonpareil.rollouts.vbon_lines import is_vbon, read_vbon

T = TypeVar("T")
GROWN_FROM = "grown_from"
"""Of a manifest while its folder grows: how the shards were drawn that have not grown yet."""
ONLY_THAT = "delete it and rerun: only that shard is drawn anew"


@dataclass(frozen=True)
class StoredGroups:
    """Groups on disk, checked to be those of one run, each once; they are gone through as often as one likes.

    One shard is in memory at a time, and found whole to the last bit before its groups are given.
    """

    shards: Sequence[tuple[Path, ShardNotes]]
    without: Sequence[str] = ()
    """Columns that are not read; their lists are empty."""

    def __iter__(self) -> Iterator[Group]:
        """The groups, in the order drawn.

        Raises:
            DataError: a shard that is damaged, or is being scored anew meanwhile.
        """
        for shard in self.shards:
            yield from to_groups(_unchanged(shard, lambda path: read_columns(path, without=self.without)[0]))


def _unchanged(shard: tuple[Path, ShardNotes], read: Callable[[Path], pa.Table]) -> pa.Table:
    """A shard's table, if it still is what it was when the folder was looked through."""
    path, notes = shard
    table = read(path)
    if notes_of(table.schema) != notes:
        raise DataError(f"{path} was written anew while the groups were read; wait for that, and run again")
    return table


def read_groups(path: str | Path) -> list[Group]:
    """The groups of a finished run's folder, of its `data` folder, or of one file; in the order drawn.

    The file is a shard or any Parquet file of groups, or vBoN's JSON lines (.json, .jsonl; see `read_vbon`).

    Raises:
        ConfigError: no path.
        DataError: nothing there, a damaged file, a run that is not finished, or a folder that lacks a shard of
            its run, holds one twice, or holds a file that is none.
    """
    return list(stored_groups(path))


def stored_groups(path: str | Path, without: Sequence[str] = ()) -> Iterable[Group]:
    """As `read_groups`, without ever holding more than one file's; see `StoredGroups`.

    Raises:
        ConfigError, DataError: as `read_groups`, before the first group but for a damaged file's.
    """
    groups, lacking = _available(path, without)
    if lacking:
        raise DataError(
            f"{path} is not finished: {lacking}. Run `nonpareil sample` again with the same settings to finish it"
        )
    return groups


def read_available(path: str | Path, without: Sequence[str] = ()) -> tuple[list[Group], str]:
    """As `read_groups`; of a run that is not finished the shards that are drawn and scored, and what is lacking.

    The second value says in words how many are there of how many; it is empty for a finished run.

    Raises:
        ConfigError, DataError: as `read_groups`, or an unfinished run of which no shard is done.
    """
    groups, lacking = _available(path, without)
    return list(groups), lacking


def _available(path: str | Path, without: Sequence[str] = ()) -> tuple[Iterable[Group], str]:
    if not isinstance(path, str | Path):
        raise ConfigError(f"path is a {type(path).__name__}; give a folder of groups or a file")
    path = Path(path)
    if not path.is_dir():
        return (read_vbon(path) if is_vbon(path) else read_shard(path)), ""
    shards, lacking = _shards_of(path)
    return StoredGroups(shards, without), lacking


def read_shards(
    path: Path, read: Callable[[Path], pa.Table], keep: Callable[[pa.Table], T]
) -> tuple[list[T], str]:
    """What `keep` makes of each shard of a folder, in the order drawn, and what the folder lacks, in words.

    One shard is in memory at a time, as `read` gives it: whole, or some of its columns with what it says of itself.

    Raises:
        DataError: as `read_available`.
    """
    shards, lacking = _shards_of(path)
    return [keep(_unchanged(shard, read)) for shard in shards], lacking


def _shards_of(path: Path) -> tuple[list[tuple[Path, ShardNotes]], str]:
    """The shards of a folder that are drawn and scored, and what is lacking; completions are not looked at yet."""
    folder = path.parent if path.name == DATA_FOLDER and (path.parent / MANIFEST).is_file() else path
    data = folder / DATA_FOLDER
    manifest = read_manifest(folder)
    files = sorted((data if data.is_dir() else folder).glob("*.parquet"))
    if not files:
        below = f"; there are groups below it: {names}" if (names := named_folders(folder)) else ""
        raise DataError(f"{path} holds no shards; give a folder that `nonpareil sample` wrote{below}")
    lacking = ""
    if manifest is not None and is_served_folder(manifest):
        shards = summarized(folder, manifest)
    elif manifest is None:
        shards = [(file, summary_of(file)) for file in files]
        _check_without_manifest(path, [one.notes for _, one in shards], sum(one.prompts for _, one in shards))
    else:
        refuse_foreign(folder, num_shards(manifest))
        shards, lacking = _of_run(path, folder, manifest)
    if any(SEARCH in one.notes.draw for _, one in shards):
        raise DataError(
            f"{path} holds answers that a stopped search keeps: they follow from scores and are no draws of the "
            "policy. Run it again to finish it; draw groups by `nonpareil sample`"
        )
    refuse_repeated(chain.from_iterable(one.prompt_ids for _, one in shards), str(path))
    return [(file, one.notes) for file, one in shards], lacking


def num_shards(manifest: Mapping[str, Any]) -> int:
    """How many shards the run has when it is finished."""
    return -(-manifest["draw"]["prompts"]["count"] // manifest["shard_size"])


def refuse_foreign(folder: Path, whole: int) -> None:
    """Refuse Parquet files beside the shards, such as copies: whoever reads the folder whole would read them too.

    Raises:
        DataError: naming one.
    """
    ours = {shard_path(folder, index) for index in range(whole)}
    for file in sorted((folder / DATA_FOLDER).glob("*.parquet")):
        if file not in ours:
            raise DataError(f"{str(file)!r} is none of the run's {whole} shards; move it out of the folder")


def check_shard(
    path: Path, index: int, manifest: Mapping[str, Any], notes: ShardNotes, prompts: int, sizes: set[int]
) -> None:
    """Refuse a shard that is not the one of its place in the run of the manifest.

    `notes`, `prompts` and `sizes`: what it says of itself, how many groups it has, and of how many completions.

    Raises:
        DataError: it is of another run or place, or has other numbers of prompts or completions.
    """
    draw = notes.draw if notes.draw in manifest.get(GROWN_FROM, ()) else manifest["draw"]
    if manifest["format"] != 1 and notes.draw != draw:
        raise DataError(f"{path} is of another run: it was drawn with other settings; {ONLY_THAT}")
    if manifest["format"] != 1 and notes.index != index:
        raise DataError(
            f"{path} holds other prompts than its place in the run: it is shard {notes.index}; {ONLY_THAT}"
        )
    size, count = manifest["shard_size"], draw["prompts"]["count"]
    expected = min(size, count - index * size)
    if prompts != expected:
        raise DataError(
            f"{path} holds {prompts} prompts, and its place in the run has {expected}; {ONLY_THAT}"
        )
    if sizes != {draw["num_generations"]}:
        raise DataError(
            f"{path} holds groups of {sorted(sizes)} completions, and the run has num_generations="
            f"{draw['num_generations']}; {ONLY_THAT}"
        )


def _of_run(
    path: Path, folder: Path, manifest: Mapping[str, Any]
) -> tuple[list[tuple[Path, ShardSummary]], str]:
    shards: list[tuple[Path, ShardSummary]] = []
    missing, unscored, ungrown = [], [], []
    for index in range(num_shards(manifest)):
        file = shard_path(folder, index)
        if not file.is_file():
            missing.append(file.name)
            continue
        found = summary_of(file)
        check_shard(file, index, manifest, found.notes, found.prompts, found.group_sizes)
        if not is_grown(found.notes, manifest):
            ungrown.append(file.name)
        elif _is_scored(found.notes, manifest.get("scoring")):
            shards.append((file, found))
        else:
            unscored.append(file.name)
    lacking = _lacking(manifest, len(shards), missing, ungrown, unscored)
    if lacking and manifest["complete"]:
        raise DataError(
            f"{path}: {lacking}, though its run was finished. Run `nonpareil sample` again with the same "
            "settings: only that is made anew"
        )
    if not shards:
        raise DataError(f"{path} is not finished: {lacking}. Wait for it, or run it again")
    return shards, lacking


def is_grown(notes: ShardNotes, manifest: Mapping[str, Any]) -> bool:
    """Whether a shard of the run has all that its place holds by now."""
    return manifest["format"] == 1 or notes.draw == manifest["draw"]


def _is_scored(notes: ShardNotes, scoring: Mapping[str, Any] | None) -> bool:
    if scoring is None:
        return True  # a run that only draws, or a manifest that was made anew
    rewards = {name: notes.rewards.get(name) for name in scoring["rewards"]}
    return rewards == scoring["rewards"] and notes.aggregate == scoring["aggregate"]


def _lacking(
    manifest: Mapping[str, Any],
    there: int,
    missing: Sequence[str],
    ungrown: Sequence[str],
    unscored: Sequence[str],
) -> str:
    whole = num_shards(manifest)
    parts = [f"{len(missing)} are not drawn (the first is {missing[0]})"] if missing else []
    parts += [f"{len(ungrown)} have not grown yet (the first is {ungrown[0]})"] if ungrown else []
    parts += [f"{len(unscored)} lack these scores (the first is {unscored[0]})"] if unscored else []
    return f"{there} of {whole} shards are there; {' and '.join(parts)}" if parts else ""


def _check_without_manifest(path: Path, notes: Sequence[ShardNotes], count: int) -> None:
    """What shards alone can say: whether they are those of one whole run. Files that no run wrote say nothing."""
    draws = [one.draw for one in notes]
    if not any(draws):
        return
    if any(draw != draws[0] for draw in draws):
        raise DataError(f"{path} holds shards of different runs, or other files among them; keep one run's")
    if is_served_folder(draws[0]):
        return
    expected = draws[0]["prompts"]["count"]
    if count != expected:
        raise DataError(
            f"{path} holds {count} of its run's {expected} prompts; give the whole folder, or read one shard"
        )
