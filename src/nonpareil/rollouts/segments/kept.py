"""A search that is killed goes on: answers are kept shard by shard, as groups are, until the last one is there.

They lie beside the file that is to be written, in a folder of its name and `.search`, which goes when the file is
whole.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonpareil.engines.base import Engine
from nonpareil.engines.segments import SegmentingEngine
from nonpareil.errors import ConfigError
from nonpareil.folders import delete_listed, is_vacant, writing
from nonpareil.markers import MARKER, OutputFolder
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.columns import message_types
from nonpareil.rollouts.filling import Filling
from nonpareil.rollouts.folder import delete_rollouts
from nonpareil.rollouts.manifest import SEARCH, differences, draw_settings, read_manifest, write_manifest
from nonpareil.rollouts.progress import Progress
from nonpareil.rollouts.scoring import reward_settings
from nonpareil.rollouts.segments.answers import COLUMNS, answer_of, reward_of
from nonpareil.rollouts.segments.driver import search
from nonpareil.rollouts.segments.schedule import Schedule
from nonpareil.rollouts.store import read_shard

COMMAND = "search"
PHASE = "search"


def kept_path(output: Path) -> Path:
    """Where the answers of a search are kept that has not written its file yet."""
    return output.with_name(f"{output.name}.search")


def is_written(output: Path) -> bool:
    """Whether a search had all of its answers when it was killed, so that the file may be its own.

    Raises:
        DataError: a damaged manifest.
    """
    return bool((read_manifest(kept_path(output)) or {}).get("complete"))


@contextmanager
def kept_folder(output: Path) -> Iterator[OutputFolder]:
    """The folder, held against other processes.

    Raises:
        ConfigError: it holds what no search left there, or another process holds it.
    """
    path = kept_path(output)
    with writing(path, COMMAND, option="output") as folder:
        folder.refuse_other_command()
        if not folder.marked and not is_vacant(path):
            raise ConfigError(
                f"{str(path)!r} is where answers are kept until output={str(output)!r} is whole, and holds "
                "something else; move it away, or give another output"
            )
        if folder.marked:
            _sweep(output)
        folder.mark()
        yield folder


def _sweep(output: Path) -> None:
    """Delete what the stopped search had begun to write in the file's place; whoever holds the folder is alone."""
    ours = re.compile(rf"\.{re.escape(output.name)}({re.escape(MARKER)})?\.\d+\.tmp")
    for path in output.parent.iterdir():
        if ours.fullmatch(path.name):
            path.unlink()


def let_go(output: Path) -> None:
    """Delete what was kept, once nobody needs it; last what says that the file is written."""
    path = kept_path(output)
    with writing(path, COMMAND, option="output") as folder:
        delete_rollouts(folder)
    delete_listed(path, COMMAND)


@dataclass
class KeptSearch(Filling):
    """The folder of kept answers while it is filled."""

    reward: CombinedReward = field(kw_only=True)
    schedule: Schedule = field(kw_only=True)
    output: Path = field(kw_only=True)

    def missing(self) -> list[int]:
        """The shards that are not searched, and those without an answer: their rewards may have been out of order.

        Raises:
            DataError: as `Filling.missing`.
        """
        missing = super().missing()
        return sorted({*missing, *(i for i, shard in self._known.items() if not shard.rewards)})

    def answers(self) -> Iterator[Group]:
        """Those of all prompts, in their order, one shard in memory at a time.

        Raises:
            DataError: a damaged shard.
        """
        for path in self.paths:
            yield from read_shard(path)

    def finished(self) -> None:
        """Say that all answers are there."""
        self.manifest = write_manifest(self.folder, {**self.manifest, "complete": True})

    def check_same(self, stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
        """Refuse to mix answers of different settings.

        Raises:
            ConfigError: naming every setting that differs, with the stored and the asked value.
        """
        if differ := [line.removeprefix(f"{SEARCH}.") for line in differences(stored, asked)]:
            raise ConfigError(
                f"output={str(self.output)!r} was begun by a search with other settings, whose answers are in "
                f"{str(folder)!r}: {'; '.join(differ)}. Give those to go on, another output, or overwrite to begin "
                "anew (--overwrite)"
            )

    def _drawn(self, index: int, engine: Engine) -> tuple[list[Group], dict[str, Any]]:
        assert isinstance(engine, SegmentingEngine)
        prompts, path = self.shards[index], self.paths[index]
        there = read_shard(path) if path.is_file() else []
        if len(there) == len(prompts) and any(reward_of(one) is not None for one in there):
            self.progress.update(len(there), 0)
            return there, {}  # of a folder that grows: it only becomes one of the larger
        found = search(prompts, engine, self.reward, self.sampling, self.schedule, self.progress)
        return [answer_of(one) for one in found], {}

    def _there(self) -> str:
        return f"A new dtype needs another output than {str(self.output)!r}, or overwrite (--overwrite)"


@dataclass(frozen=True)
class _OnePhase:
    """Progress of all shards together: filling the folder is the search, and no shard's is another."""

    progress: Progress

    def start(self, phase: str, total: int) -> None:
        """Begin, where it is the folder that begins."""
        if phase != PHASE:
            self.progress.start(PHASE, total)

    def update(self, groups: int, tokens: int) -> None:
        self.progress.update(groups, tokens)


def kept_search(
    folder: OutputFolder,
    output: Path,
    prompts: Sequence[Prompt],
    reward: CombinedReward,
    sampling: SamplingParams,
    schedule: Schedule,
    settings: Mapping[str, Any],
    *,
    model_info: Mapping[str, Any],
    shard_size: int,
    progress: Progress,
    overwrite: bool = False,
) -> KeptSearch:
    """Take up what a stopped search left in its folder, or begin.

    Args:
        folder: as `kept_folder` gives it.
        output: the file that is to be written.
        prompts, reward, sampling, schedule: as `driver.search` takes them.
        settings: what decides the schedule, by the names that a user knows.
        model_info: what decides the policy, for the manifest.
        shard_size: prompts that are kept at a time; an earlier call's stays.
        progress: told of prompts and tokens as they come.
        overwrite: where the settings are others, begin anew.

    Raises:
        ConfigError: the stopped search had other settings, and no `overwrite`; each is named.
        DataError: what it left is damaged.
    """
    weights = dict(zip(reward.names, reward.weights, strict=True))
    draw = draw_settings(prompts, sampling, 1, model_info)
    draw[SEARCH] = {**settings, "rewards": reward_settings(reward), "reward_weights": weights}
    types = COLUMNS | message_types(prompt.prompt for prompt in prompts)

    def taken_up(old: OutputFolder | None) -> KeptSearch:
        return KeptSearch(
            folder.path,
            prompts,
            types,
            sampling,
            num_generations=1,
            settings=draw,
            shard_size=shard_size,
            progress=_OnePhase(progress),
            old=old,
            reward=reward,
            schedule=schedule,
            output=output,
        )

    try:
        return taken_up(None)
    except ConfigError:
        if not overwrite:
            raise
        return taken_up(folder)
