"""Folders of groups that were drawn and scored alike, as one: of different prompts, or of further draws."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group
from nonpareil.rollouts.columns import column_types, message_types
from nonpareil.rollouts.folder import delete_rollouts, locked_folder
from nonpareil.rollouts.manifest import (
    FORMAT,
    JOINED_FROM,
    GroupCounts,
    read_manifest,
    versions,
    write_manifest,
)
from nonpareil.rollouts.reading import stored_groups
from nonpareil.rollouts.store import ShardNotes, shard_path, write_shard
from nonpareil.rollouts.summaries import summary_of
from nonpareil.settings import differing, flat

UNKNOWN = "null in the folder that was joined, whose manifest has the reasons"
_OF_PARTS = ("seed", "num_generations", "prompts.count", "prompts.sha256", "prompts.columns_sha256")
_OF_MIXTURES = "prompts.sources."
_LABELS = ("model.path", "prompts.token_ids_sha256")


@dataclass(frozen=True)
class JoinReport:
    """What became of the folders."""

    manifest: dict[str, Any]
    copies: int
    """Groups that a folder before had already, drawn with the same seed; they were taken once."""


@dataclass(frozen=True)
class _Part:
    """One of the folders."""

    path: Path
    manifest: dict[str, Any]
    ids: list[str]
    read: str
    """A hash of the prompts' token ids."""
    columns: str
    """A hash of the dataset's further columns."""

    @property
    def draw(self) -> dict[str, Any]:
        return self.manifest["draw"]

    @property
    def seeds(self) -> list[Any]:
        """Of a folder that was joined itself, those of its parts."""
        return _flat(self.draw["seed"])

    def groups(self) -> Iterator[Group]:
        return iter(stored_groups(self.path))


def join(
    folders: Sequence[str | Path], output_dir: str | Path, *, shard_size: int = 64, overwrite: bool = False
) -> JoinReport:
    """Write the groups of several finished folders as one.

    Folders of different prompts follow one another. Folders of the same prompts in the same order, drawn with
    different seeds, give groups of all their completions. A group that an earlier folder has too, drawn with the
    same seed, is the same one, and is taken once.

    Args:
        folders: two at least, each written by `nonpareil sample`.
        output_dir: new or empty, or with `overwrite` one that holds groups of ours.
        shard_size: prompts per file.
        overwrite: delete the groups there first.

    Raises:
        ConfigError: settings of drawing or scoring that differ, each named; or an output that holds something.
        DataError: a folder that is not finished or has no manifest, or prompts of which only some are in both.
    """
    if len(folders) < 2:
        raise ConfigError(f"groups={[str(folder) for folder in folders]}: give two folders at least to join")
    parts = [_part(Path(folder)) for folder in folders]
    for other in parts[1:]:
        _check_alike(parts[0], other)
    further = all(part.ids == parts[0].ids for part in parts) and any(
        part.seeds != parts[0].seeds for part in parts
    )
    copies = 0 if further else _copies(parts)
    _check_further(parts) if further else _check_sizes(parts)
    there = [
        (group.columns, group.prompt) for part in (parts[:1] if further else parts) for group in part.groups()
    ]
    types = column_types([columns for columns, _ in there]) | message_types(prompt for _, prompt in there)
    with locked_folder(Path(output_dir), overwrite=overwrite) as held:
        if not overwrite and read_manifest(held.path) is not None:
            raise ConfigError(
                f"output_dir={str(output_dir)!r} holds groups; give another, or overwrite (--overwrite)"
            )
        if overwrite:
            delete_rollouts(held)
        groups = _joined(parts) if further else _one_after_another(parts)
        manifest = _write(held.path, parts, groups, types, shard_size, further=further)
    return JoinReport(manifest, copies)


def _part(folder: Path) -> _Part:
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        raise DataError(
            f"groups={str(folder)!r} has no manifest.json; give folders written by `nonpareil sample`"
        )
    heavy = ("completions", "completion_token_ids", "finish_reasons", "logprobs")
    ids, read, columns = [], hashlib.sha256(), hashlib.sha256()
    for group in stored_groups(folder, without=heavy):
        ids.append(group.prompt_id)
        read.update(json.dumps(group.prompt_token_ids).encode())
        columns.update(json.dumps(group.columns, sort_keys=True, default=str).encode())
    return _Part(folder, manifest, ids, read.hexdigest(), columns.hexdigest())


def _flat(seed: Any) -> list[Any]:
    return [each for one in seed for each in _flat(one)] if isinstance(seed, list) else [seed]


def _check_alike(one: _Part, other: _Part) -> None:
    """Refuse folders that were drawn or scored otherwise; seeds, prompts and sizes are looked at elsewhere."""
    lines = []
    for key in ("draw", "scoring"):
        there, here = (flat(part.manifest.get(key) or {}) for part in (one, other))
        for name, (was, now) in differing(there, here).items():
            known = key == "draw" and (name in _OF_PARTS or name in _LABELS or name.startswith(_OF_MIXTURES))
            label = name.endswith(".path") and f"{name[:-5]}.fingerprint" in there
            if not known and not label and not name.startswith(f"{JOINED_FROM}"):
                lines.append(f"  {key}.{name}: {was!r} in {str(one.path)!r}, {now!r} in {str(other.path)!r}")
    if lines:
        raise ConfigError(
            "groups of different settings do not join:\n"
            + "\n".join(lines)
            + "\nDraw them alike, or score both "
            "anew with `nonpareil sample` and the same rewards"
        )


def _check_further(parts: Sequence[_Part]) -> None:
    """Draws of the same prompts, read alike: each seed once, and no reward that compares a group's completions."""
    seeds = [seed for part in parts for seed in part.seeds]
    if len(set(seeds)) < len(seeds):
        raise DataError(
            f"groups of the same prompts with the seeds {', '.join(map(str, seeds))}: two of one seed are the same "
            "draws, and would count twice; leave one out"
        )
    for other in parts[1:]:
        pair = f"{str(parts[0].path)!r} and {str(other.path)!r} hold the same prompts"
        if other.read != parts[0].read:
            raise DataError(
                f"{pair}, and the policy read them otherwise (other token ids: a chat template may write the "
                "date), so that their completions are of different prompts; draw both with one rendering "
                "(chat_template_kwargs), or more into one folder (a larger num_generations)"
            )
        if other.columns != parts[0].columns:
            raise DataError(
                f"{pair}, with other values in the dataset's further columns, which rewards may have read; draw "
                "and score both from one dataset"
            )
    rewards = (parts[0].manifest.get("rewards") or {}).get("rewards", ())
    if judged := [each["name"] for each in rewards if "judge" in str(each.get("kind"))]:
        raise ConfigError(
            f"reward {judged[0]!r} compares completions of one group, and these were judged apart; draw them into "
            "one folder (a larger num_generations), which judges them together"
        )


def _check_sizes(parts: Sequence[_Part]) -> None:
    sizes = {str(part.path): part.draw["num_generations"] for part in parts}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{size} in {path!r}" for path, size in sizes.items())
        raise ConfigError(
            f"num_generations: {words}; a folder's groups have one size, so let the smaller ones grow first"
        )


def _copies(parts: Sequence[_Part]) -> int:
    """How many groups an earlier folder has too.

    Raises:
        DataError: draws of one prompt with different seeds, where other prompts have one seed only.
    """
    seen: dict[str, _Part] = {}
    copies = 0
    for part in parts:
        for prompt_id in part.ids:
            before = seen.setdefault(prompt_id, part)
            if before is part:
                continue
            copies += 1
            if before.draw["seed"] != part.draw["seed"]:
                raise DataError(
                    f"prompt {prompt_id!r} is in {str(before.path)!r} (seed {before.draw['seed']}) and in "
                    f"{str(part.path)!r} (seed {part.draw['seed']}), and not all prompts are in both: groups would "
                    "have different sizes; join folders of the same prompts, or of different ones"
                )
    return copies


def _one_after_another(parts: Sequence[_Part]) -> Iterator[Group]:
    seen: dict[str, str] = {}
    for part in parts:
        for group in part.groups():
            drawn = hashlib.sha256(json.dumps(group.completions).encode()).hexdigest()
            if group.prompt_id not in seen:
                seen[group.prompt_id] = drawn
                yield group
            elif seen[group.prompt_id] != drawn:
                raise DataError(
                    f"prompt {group.prompt_id!r} of {str(part.path)!r} has other completions than in a folder "
                    "before, though both were drawn with one seed; leave one of the folders out"
                )


def _joined(parts: Sequence[_Part]) -> Iterator[Group]:
    for same in zip(*(part.groups() for part in parts), strict=True):
        whole = same[0]
        for more in same[1:]:
            whole = whole.joined(more)
        yield whole


def _write(
    folder: Path,
    parts: Sequence[_Part],
    groups: Iterator[Group],
    types: Mapping[str, pa.DataType | None],
    shard_size: int,
    *,
    further: bool,
) -> dict[str, Any]:
    first = parts[0].manifest
    ids = parts[0].ids if further else list(dict.fromkeys(i for part in parts for i in part.ids))
    draw = _draw(parts, ids, further=further)
    kept: dict[str, Any] = {
        key: first[key] for key in ("rewards", "scoring", "reward_options") if key in first
    }
    manifest = {
        "format": FORMAT,
        "complete": False,
        "draw": draw,
        "shard_size": shard_size,
        "versions": versions(),
    }
    manifest = write_manifest(folder, {**manifest, **kept})
    scoring = first.get("scoring") or {"rewards": {}, "aggregate": {}}
    counts = GroupCounts()
    for index in range(-(-len(ids) // shard_size)):
        some = list(islice(groups, shard_size))
        names = scoring["rewards"]
        some = [replace(g, rewards_by_name={name: g.rewards_by_name[name] for name in names}) for g in some]
        nulls = {name: sum(g.rewards_by_name[name].count(None) for g in some) for name in names}
        failures = {name: {UNKNOWN: count} if count else {} for name, count in nulls.items()}
        notes = ShardNotes(names, failures, scoring["aggregate"], draw, index, shard_size)
        write_shard(shard_path(folder, index), some, types, notes)
        counts.add(summary_of(shard_path(folder, index)))
    if next(groups, None) is not None or counts.prompts != len(ids):
        raise DataError("a folder was written anew while it was joined; wait for that, and run again")
    return write_manifest(folder, {**manifest, "complete": True, "counts": counts.to_dict()})


def _draw(parts: Sequence[_Part], ids: Sequence[str], *, further: bool) -> dict[str, Any]:
    """How the whole was drawn: as the parts, whose seeds, sizes and prompts stand apart."""
    draw = parts[0].draw
    seeds = list(dict.fromkeys(seed for part in parts for seed in part.seeds))
    prompts = {"count": len(ids), "sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]}
    if "rendering" in draw["prompts"]:
        prompts["rendering"] = draw["prompts"]["rendering"]
    return {
        **draw,
        "seed": seeds[0] if len(seeds) == 1 else seeds,
        "num_generations": sum(p.draw["num_generations"] for p in parts)
        if further
        else draw["num_generations"],
        "prompts": prompts,
        JOINED_FROM: [
            {name: part.draw[name] for name in ("seed", "num_generations", "prompts")} for part in parts
        ],
    }
