"""What is left to do in a folder of groups: draw the shards that are missing, score those that lack rewards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from nonpareil.engines.base import PROMPT_CACHE, Engine
from nonpareil.errors import ConfigError, DataError, NotFiniteError, RewardError
from nonpareil.files import jsonable, write_bytes
from nonpareil.markers import OutputFolder
from nonpareil.models.memory import free_memory
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.cluster import ShardTask, ShardWorkers
from nonpareil.rollouts.folder import delete_rollouts
from nonpareil.rollouts.given import GivenEngine, GivenReward, made_engine, made_reward, release
from nonpareil.rollouts.growing import engine_of, grown, grown_shard, part_there
from nonpareil.rollouts.manifest import (
    FORMAT,
    TOKEN_IDS,
    GroupCounts,
    check_same,
    rendering_moved,
    versions,
    write_manifest,
)
from nonpareil.rollouts.progress import Progress
from nonpareil.rollouts.reading import GROWN_FROM
from nonpareil.rollouts.rendering import read_rendered, write_rendered
from nonpareil.rollouts.resume import shards_there, stored_manifest
from nonpareil.rollouts.scoring import reward_settings, score_shard, shards_to_score
from nonpareil.rollouts.store import ShardNotes, read_table, shard_path, write_shard
from nonpareil.rollouts.summaries import ShardSummary, summary_of
from nonpareil.terminal import tell


@dataclass
class Filling:
    """A folder of groups while it is filled, by whoever holds its lock."""

    folder: Path
    prompts: Sequence[Prompt]
    types: Mapping[str, pa.DataType | None]
    """Of the dataset's further columns, over all prompts; None where it follows from the values of a shard."""
    sampling: SamplingParams
    num_generations: int
    """Completions per prompt."""
    settings: dict[str, Any]
    """What decides the draws, save the engine: as the manifest has it under `draw`."""
    shard_size: int
    """Prompts per shard; that of the folder, where it was begun before."""
    progress: Progress
    old: OutputFolder | None
    """The folder while it holds what is to be deleted before anything is drawn."""
    reward_options: Mapping[str, Any] | None = None
    """How a user named the rewards."""
    moved: bool = False
    """Whether the prompts would be rendered otherwise now than they were when the folder was begun."""
    check_same = staticmethod(check_same)

    def __post_init__(self) -> None:
        """Take up what an earlier run left.

        Raises:
            ConfigError: it was run with other settings; each is named.
            DataError: a damaged manifest or shard.
        """
        self.manifest: dict[str, Any] = {}
        self.grows = False
        """Whether the manifest on disk is still that of a smaller folder."""
        self._known: dict[int, ShardSummary] = {}
        """By index the shards on disk that were counted and not written to since."""
        stored = None if self.old else stored_manifest(self.folder)
        if stored is not None:
            there = part_there(stored["draw"], self.settings, self.prompts)
            self.moved = rendering_moved(stored["draw"], there)
            self.check_same({k: v for k, v in stored["draw"].items() if k != "engine"}, there, self.folder)
            self.grows = there is not self.settings
            self.manifest = (
                grown(stored, self.settings, self.folder, moved=self.moved) if self.grows else stored
            )
            self.shard_size = stored["shard_size"]
        self._divide()

    def _divide(self) -> None:
        starts = range(0, len(self.prompts), self.shard_size)
        self.shards = [self.prompts[start : start + self.shard_size] for start in starts]
        self.paths = [shard_path(self.folder, index) for index in range(len(self.shards))]

    def missing(self) -> list[int]:
        """The shards that are not drawn, by index.

        Raises:
            DataError: one that is damaged or another run's, or prompts that are rendered otherwise than they were
                kept.
        """
        if self.old:
            return list(range(len(self.paths)))
        self._known = shards_there(self.folder, self.manifest, self.shards)
        missing = [index for index in range(len(self.paths)) if index not in self._known]
        if missing and self._known:
            tell(f"{len(self._known)} of {len(self.paths)} shards are drawn; the others follow")
        if self.moved:
            tell(
                f"the chat template renders the prompts otherwise than when {self.folder} was begun (it may write "
                "the date): they are taken as they were then"
            )
        if self.moved and missing:
            sha256 = self.manifest["draw"]["prompts"][TOKEN_IDS]
            self.prompts = read_rendered(self.folder, self.prompts, sha256)
            self._divide()
        return missing

    def draw_missing(self, engine: GivenEngine) -> int:
        """Draw the shards that are missing, one after another; returns how many there were.

        An engine that is made here is let go at the end.

        Raises:
            ConfigError: the engine's settings are not those of the folder.
            NotFiniteError: the policy's log-probs are no numbers; the shards before stay.
        """
        missing = self.missing()
        if not missing:
            return 0
        drawer = made_engine(engine)
        self._begin(drawer)
        self.progress.start("draw", sum(len(self.shards[i]) for i in missing))
        for i in missing:
            try:
                groups, notes = self._drawn(i, drawer)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}. {self._there()}") from error
            write_shard(self.paths[i], groups, self.types, replace(self._notes(i), **notes))
        if drawer is not engine:
            release(drawer)
            del drawer
            free_memory()
        return len(missing)

    def _drawn(self, index: int, engine: Engine) -> tuple[list[Group], dict[str, Any]]:
        """The groups of a shard, whole, and what it says of its scores, where it has some."""
        prompts, arguments = self.shards[index], (engine, self.sampling, self.progress.update)
        if self.paths[index].is_file():
            groups, notes = grown_shard(self.paths[index], prompts, self.num_generations, *arguments)
            return groups, {name: getattr(notes, name) for name in ("rewards", "failures", "aggregate")}
        draws = engine.draw(prompts, self.num_generations, *arguments[1:])
        return [Group.of(p, d) for p, d in zip(prompts, draws, strict=True)], {}

    def _there(self) -> str:
        """What is drawn, and that it goes with no other dtype."""
        there = sum(path.is_file() for path in self.paths)
        return f"{there} of {len(self.paths)} shards stay in {str(self.folder)!r}; a new dtype needs a new folder"

    def _begin(self, engine: Engine | ShardWorkers) -> None:
        """Check the engine against the folder's, or write the manifest of a new folder, emptied if it must be."""
        description = jsonable(engine.describe())
        description.pop(PROMPT_CACHE, None)
        if self.old:
            delete_rollouts(self.old)
            self.old = None
        if self.manifest:
            stored = engine_of(self.manifest["draw"], self.folder)
            self.check_same({"engine": stored}, {"engine": description}, self.folder)
            if self.grows:
                write_rendered(self.folder, self.prompts)
                self.manifest, self.grows = write_manifest(self.folder, self.manifest), False
            return
        # Before the first shard: no shard is ever without the settings it was drawn with.
        self.manifest = write_manifest(
            self.folder,
            {
                "format": FORMAT,
                "complete": False,
                "draw": {**self.settings, "engine": description},
                "shard_size": self.shard_size,
                "versions": versions(),
            },
        )
        write_rendered(self.folder, self.prompts)

    def _notes(self, index: int) -> ShardNotes:
        return ShardNotes(draw=self.manifest["draw"], index=index, shard_size=self.shard_size)

    def score_missing(self, reward: GivenReward) -> tuple[int, Counter[str]]:
        """Score the shards that lack these rewards; returns how many, and what the rewards counted at it.

        Rewards that are made here are let go at the end.

        Raises:
            RewardError: a reward that cannot go on.
        """
        scorer = made_reward(reward)
        before = scorer.counts
        settings, todo = self._begin_scoring(scorer)
        if todo:
            self.progress.start("score", sum(len(self.shards[i]) for i in todo))
        try:
            for i in todo:
                self._known.pop(i, None)
                self.progress.update(score_shard(self.paths[i], scorer, settings), 0)
        finally:
            if scorer is not reward:
                scorer.release()
        counts = scorer.counts
        counts.subtract(before)
        return len(todo), counts

    def _begin_scoring(self, scorer: CombinedReward) -> tuple[dict[str, Any], list[int]]:
        """What each column is to be scored with, and which shards lack it; the manifest says so first."""
        settings = reward_settings(scorer)
        weights = dict(zip(scorer.names, scorer.weights, strict=True))
        self.manifest |= {
            "rewards": jsonable(scorer.describe()),
            "scoring": {"rewards": settings, "aggregate": weights},
            "reward_options": jsonable(dict(self.reward_options or {})),
        }
        sizes = [len(shard) * self.num_generations for shard in self.shards]
        there = [self._counted(i) if path.is_file() else None for i, path in enumerate(self.paths)]
        todo = shards_to_score(there, settings, weights, sizes)
        if todo:
            self.manifest = write_manifest(self.folder, {**self.manifest, "complete": False})
        return settings, todo

    def _counted(self, index: int) -> ShardSummary:
        if index not in self._known:
            self._known[index] = summary_of(self.paths[index]).without_ids()
        return self._known[index]

    def fill_missing(
        self, workers: ShardWorkers, reward: GivenReward | None
    ) -> tuple[int, int, Counter[str]]:
        """Draw and score in one go what lacks either; a shard is on disk as soon as a worker is done with it.

        Returns how many shards were drawn, how many were scored, and what the rewards counted at it.

        Raises:
            DataError: a shard that no worker gave back.
            NonpareilError: as the workers.
        """
        if GROWN_FROM in self.manifest:
            raise ConfigError(
                f"output_dir={str(self.folder)!r} would grow, and engine=ray draws whole shards alone; grow it "
                "with engine=transformers"
            )
        missing = self.missing()
        scorer = None if reward is None else made_reward(reward)
        if missing:
            self._begin(workers)
        settings, unscored = (None, []) if scorer is None else self._begin_scoring(scorer)
        waiting = {*missing, *unscored}
        if not waiting:
            return 0, 0, Counter()
        self.progress.start("draw and score", sum(len(self.shards[i]) for i in waiting))
        tasks = (
            ShardTask(i, self.shards[i], None if i in missing else read_table(self.paths[i]), self._notes(i))
            for i in sorted(waiting)
        )
        shards = workers.finish(tasks, self.sampling, self.num_generations, self.types, settings)
        counts: Counter[str] = Counter()
        with closing(shards):
            for shard in shards:
                if shard.index in waiting:  # a worker that died may have been answered for twice
                    waiting.remove(shard.index)
                    counts.update(shard.counts)
                    self._known.pop(shard.index, None)
                    write_bytes(self.paths[shard.index], shard.content)
                    self.progress.update(shard.groups, shard.tokens)
        if waiting:
            raise DataError(f"no worker gave back the shards {sorted(waiting)}; run again to go on")
        return len(missing), len(unscored), counts

    def finish(self, *, scored: bool) -> dict[str, Any]:
        """Count everything, and say in the manifest that the folder is whole; returns the manifest.

        `scored` is whether rewards were asked for.

        Raises:
            RewardError: every reward is null.
        """
        counts = GroupCounts()
        for index in range(len(self.paths)):
            counts.add(self._counted(index))
        kept = {key: value for key, value in self.manifest.items() if key != GROWN_FROM}
        self.manifest = write_manifest(self.folder, {**kept, "complete": True, "counts": counts.to_dict()})
        if scored and not counts.rewards:
            reasons = counts.reasons(self.manifest["scoring"]["rewards"]) or "their weighted sum is no number"
            raise RewardError(
                f"every reward is null, so no completion is better than another: {reasons}. The groups stay in "
                f"{str(self.folder)!r}; mend the reward and run again: nothing is drawn anew, and what failed is "
                "asked again"
            )
        return self.manifest
