"""What a run finds in its folder: how its shards were drawn, and whether they are those of its prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonpareil.engines.decoding import TEXT
from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, refuse_repeated
from nonpareil.rollouts.folder import MANIFEST
from nonpareil.rollouts.growing import is_part_of
from nonpareil.rollouts.manifest import FORMAT, JOINED_FROM, read_manifest, versions
from nonpareil.rollouts.reading import (
    GROWN_FROM,
    ONLY_THAT,
    check_shard,
    is_grown,
    num_shards,
    refuse_foreign,
)
from nonpareil.rollouts.served import is_served_folder
from nonpareil.rollouts.store import ShardNotes, notes_of, read_table, shard_path
from nonpareil.rollouts.summaries import ShardSummary, summary_of
from nonpareil.terminal import printable, tell


def stored_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that has shards; one that is lost is made anew from what they say of themselves.

    Raises:
        DataError: a damaged manifest or shard, or a file that is none of the run's.
        ConfigError: shards without a manifest that do not say how they were drawn, or a folder that was joined.
    """
    shards = sorted(folder.glob("data/shard-*.parquet"))
    if not shards:
        return None
    manifest = read_manifest(folder)
    if is_served_folder(manifest or notes_of(read_table(shards[0]).schema).draw):
        raise ConfigError(
            f"output_dir={str(folder)!r} holds groups of served requests, which nothing is drawn for again; give "
            "another output_dir"
        )
    if manifest is None:
        notes, grown_from = _largest(shards)  # the others are held against it
        if not notes.draw:
            raise ConfigError(
                f"output_dir={str(folder)!r} has no {MANIFEST}, and {shards[0].name} does not say how it was "
                "drawn; give another output_dir"
            )
        manifest = {
            "format": FORMAT,
            "complete": False,
            "draw": notes.draw,
            "shard_size": notes.shard_size,
            "versions": versions(),
            **({GROWN_FROM: grown_from} if grown_from else {}),
        }
    if JOINED_FROM in manifest["draw"]:
        raise ConfigError(
            f"output_dir={str(folder)!r} was put together by `nonpareil join`, and neither grows nor is scored "
            "anew: do that with the folders it was joined from, and join them again, or give another output_dir"
        )
    refuse_foreign(folder, num_shards(manifest))
    tell_old_texts(folder, manifest)
    return manifest


def _largest(shards: Sequence[Path]) -> tuple[ShardNotes, list[dict[str, Any]]]:
    """What the shard of the largest run says of itself, and how those were drawn that had not grown to it."""
    notes = [notes_of(read_table(shards[0]).schema), *(summary_of(shard).notes for shard in shards[1:])]
    drawn = [one for one in notes if one.draw]
    if not drawn:
        return notes[0], []
    largest = max(drawn, key=lambda one: (one.draw["prompts"]["count"], one.draw["num_generations"]))
    smaller = [one.draw for one in drawn if one.draw != largest.draw and is_part_of(one.draw, largest.draw)]
    return largest, [draw for i, draw in enumerate(smaller) if draw not in smaller[:i]]


def tell_old_texts(folder: Path, manifest: dict[str, Any] | None) -> None:
    """Warn of texts that an earlier version decoded, before rewards or people read them as what was drawn."""
    engine = (manifest or {}).get("draw", {}).get("engine") or {}
    servers = ("openai", "served")  # whose texts are their own
    if engine and not TEXT.keys() & engine.keys() and engine.get("engine") not in servers:
        tell(
            f"{printable(str(folder))}: an earlier version decoded these completions alone, so their texts lack "
            "special tokens and, with SentencePiece, often the first space; their ids and log-probs are right. "
            "Rewards of such texts may differ from those of what was drawn: draw anew into another output_dir"
        )


def shards_there(
    folder: Path, manifest: dict[str, Any], shards: Sequence[Sequence[Prompt]]
) -> dict[int, ShardSummary]:
    """The shards that are drawn, counted, by index: each once, and without its completions. One that is to grow is
    none of them.

    That they are of this run, in their place, and of these prompts is checked, with the bits that say so. The bits
    of completions and log-probs are checked by whoever reads them, be it to score them.

    Raises:
        DataError: one that is damaged there, or not the one of its place.
    """
    there = {}
    for index, prompts in enumerate(shards):
        path = shard_path(folder, index)
        if not path.is_file():
            continue
        found = summary_of(path)
        check_shard(path, index, manifest, found.notes, found.prompts, found.group_sizes)
        if found.prompt_ids != [prompt.prompt_id for prompt in prompts[: found.prompts]]:
            raise DataError(f"{path} holds other prompts than its place in the run; {ONLY_THAT}")
        if is_grown(found.notes, manifest):
            there[index] = found.without_ids()
    return there


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that cannot be drawn for, or not into one folder.

    Raises:
        DataError: none, two with one id, or string prompts and conversations together.
    """
    if not prompts:
        raise DataError("there are no prompts to draw for")
    refuse_repeated((prompt.prompt_id for prompt in prompts), "prompts")
    if len({isinstance(prompt.prompt, str) for prompt in prompts}) > 1:
        raise DataError("string prompts and conversations are mixed; make all of them conversations")
