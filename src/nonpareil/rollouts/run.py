"""Draw groups and score them, shard by shard, so that a kill at any moment costs one shard at most."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from nonpareil.engines.base import Engine
from nonpareil.errors import DataError, NotFiniteError, RewardError
from nonpareil.files import jsonable, write_bytes
from nonpareil.markers import OutputFolder
from nonpareil.models.memory import free_memory
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.cluster import ShardTask, ShardWorkers
from nonpareil.rollouts.columns import column_types
from nonpareil.rollouts.folder import delete_rollouts, locked_folder
from nonpareil.rollouts.given import made_engine, release
from nonpareil.rollouts.manifest import (
    FORMAT,
    TOKEN_IDS,
    GroupCounts,
    check_same,
    draw_settings,
    rendering_moved,
    versions,
    write_manifest,
)
from nonpareil.rollouts.progress import Progress, Silent
from nonpareil.rollouts.reading import read_groups
from nonpareil.rollouts.rendering import read_rendered, write_rendered
from nonpareil.rollouts.resume import check_prompts, missing_shards, stored_manifest
from nonpareil.rollouts.scoring import reward_settings, score_shard, shards_to_score
from nonpareil.rollouts.store import ShardNotes, read_table, shard_path, write_shard
from nonpareil.setting_types import check_value
from nonpareil.settings import check_settings
from nonpareil.terminal import tell


@dataclass(frozen=True)
class RolloutResult:
    """What a run left behind."""

    output_dir: Path
    manifest: dict[str, Any]
    shards_drawn: int
    """By this call; the others were there."""
    shards_scored: int
    reward_counts: dict[str, int]
    """What the rewards counted at it, wherever they are; see `scoring.counted`."""

    def groups(self) -> list[Group]:
        """All groups, in the order of the prompts, read from disk."""
        return read_groups(self.output_dir)


def draw_and_score(
    prompts: Sequence[Prompt],
    engine: Engine | Callable[[], Engine] | ShardWorkers,
    reward: CombinedReward | Callable[[], CombinedReward] | None,
    sampling: SamplingParams,
    num_generations: int,
    output_dir: str | Path,
    *,
    model_info: Mapping[str, Any],
    shard_size: int = 64,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> RolloutResult:
    """Fill a folder with scored groups; call it again to go on where it stopped.

    First every missing shard is drawn, then every shard is scored that lacks these rewards, or of which one
    of them gave nothing but nulls: it may have been out of order. What is committed is never drawn again; other
    rewards' columns stay, and `rewards` becomes the aggregate of those asked for.

    Where a chat template renders the same prompts otherwise than when the folder was begun (it may write the
    date), they are taken as they were then.

    Args:
        prompts: whose ids must differ.
        engine: or a function that makes it, called only if something is to be drawn; what it made is let
            go before the reward is made, so that one large model is in memory at a time. Or workers, each of
            which draws and scores whole shards; then `reward` only says what theirs must be.
        reward: or a function that makes it, called after drawing; None draws only.
        sampling: its seed decides the draws, together with each prompt's id.
        num_generations: completions a prompt, at least 2.
        output_dir: new, empty, or of an earlier call with the same settings.
        model_info: what decides the policy: `fingerprint`, `revision`, `adapter`, ... ; `path` is a label.
        shard_size: prompts a file; an earlier call's stays.
        progress: told of groups and tokens as they come.
        overwrite: delete the shards and manifest that we wrote there, once the engine is made; other files stay.

    Raises:
        ConfigError: num_generations < 2, settings other than those of the folder (each is named), a folder
            of other things, or another process at work in it.
        DataError: no prompts, prompts with equal ids or of both kinds, a column that cannot be stored, a
            damaged shard or manifest, or a file among the shards that is none.
        RewardError: every completion's reward is null; the groups stay, and what failed is asked again by the
            next call.
    """
    check_value("num_generations", num_generations, int, at_least=2, why="one prompt's draws are compared")
    check_value("shard_size", shard_size, int, at_least=1)
    check_value("output_dir", output_dir, str | PathLike, path=True)
    check_value("sampling", sampling, SamplingParams)
    check_settings(sampling)
    check_prompts(prompts)
    types = column_types([prompt.columns for prompt in prompts])
    folder = Path(output_dir)
    with locked_folder(folder, overwrite=overwrite) as held:
        draw = draw_settings(prompts, sampling, num_generations, model_info)
        progress, old = progress or Silent(), held if overwrite else None
        run = _Run(folder, prompts, types, sampling, num_generations, draw, shard_size, progress, old)
        if isinstance(engine, ShardWorkers):
            drawn, scored, counts = run.fill_missing(engine, reward)
        else:
            drawn = run.draw_missing(engine)
            scored, counts = (0, Counter()) if reward is None else run.score_missing(reward)
        return RolloutResult(folder, run.finish(scored=reward is not None), drawn, scored, dict(counts))


@dataclass
class _Run:
    folder: Path
    prompts: Sequence[Prompt]
    types: Mapping[str, pa.DataType | None]
    sampling: SamplingParams
    num_generations: int
    settings: dict[str, Any]
    shard_size: int
    progress: Progress
    old: OutputFolder | None
    """The folder while it holds what is to be deleted before anything is drawn."""
    moved: bool = False
    """Whether the prompts would be rendered otherwise now than they were when the folder was begun."""

    def __post_init__(self) -> None:
        self.manifest: dict[str, Any] = {}
        stored = None if self.old else stored_manifest(self.folder)
        if stored is not None:
            self.moved = rendering_moved(stored["draw"], self.settings)
            check_same({k: v for k, v in stored["draw"].items() if k != "engine"}, self.settings, self.folder)
            self.manifest = stored
            self.shard_size = stored["shard_size"]
        self._divide()

    def _divide(self) -> None:
        starts = range(0, len(self.prompts), self.shard_size)
        self.shards = [self.prompts[start : start + self.shard_size] for start in starts]
        self.paths = [shard_path(self.folder, index) for index in range(len(self.shards))]

    def missing(self) -> list[int]:
        if self.old:
            return list(range(len(self.paths)))
        missing = missing_shards(self.folder, self.manifest, self.shards)
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

    def draw_missing(self, engine: Engine | Callable[[], Engine]) -> int:
        missing = self.missing()
        if not missing:
            return 0
        drawer = made_engine(engine)
        self._begin(drawer)
        self.progress.start("draw", sum(len(self.shards[i]) for i in missing))
        for i in missing:
            try:
                draws = drawer.draw(self.shards[i], self.num_generations, self.sampling, self.progress.update)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}. {self._there()}") from error
            groups = [Group.of(p, d) for p, d in zip(self.shards[i], draws, strict=True)]
            write_shard(self.paths[i], groups, self.types, self._notes(i))
        if drawer is not engine:
            release(drawer)
            del drawer
            free_memory()
        return len(missing)

    def _there(self) -> str:
        """What is drawn, and that it goes with no other dtype."""
        there = sum(path.is_file() for path in self.paths)
        return f"{there} of {len(self.paths)} shards stay in {str(self.folder)!r}; a new dtype needs a new folder"

    def _begin(self, engine: Engine | ShardWorkers) -> None:
        """Check the engine against the folder's, or write the manifest of a new folder, emptied if it must be."""
        description = jsonable(engine.describe())
        if self.old:
            delete_rollouts(self.old)
            self.old = None
        if self.manifest:
            check_same({"engine": self.manifest["draw"]["engine"]}, {"engine": description}, self.folder)
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

    def score_missing(
        self, reward: CombinedReward | Callable[[], CombinedReward]
    ) -> tuple[int, Counter[str]]:
        scorer = reward if isinstance(reward, CombinedReward) else reward()
        before = scorer.counts
        settings, todo = self._begin_scoring(scorer)
        if todo:
            self.progress.start("score", sum(len(self.shards[i]) for i in todo))
        try:
            for i in todo:
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
        }
        sizes = [len(shard) * self.num_generations for shard in self.shards]
        todo = shards_to_score(self.paths, settings, weights, sizes)
        if todo:
            self.manifest = write_manifest(self.folder, {**self.manifest, "complete": False})
        return settings, todo

    def fill_missing(
        self, workers: ShardWorkers, reward: CombinedReward | Callable[[], CombinedReward] | None
    ) -> tuple[int, int, Counter[str]]:
        """Draw and score in one go what lacks either; a shard is on disk as soon as a worker is done with it."""
        missing = self.missing()
        scorer = reward if reward is None or isinstance(reward, CombinedReward) else reward()
        if missing:
            self._begin(workers)
        settings: dict[str, Any] | None = None
        unscored: list[int] = []
        if scorer is not None:
            settings, unscored = self._begin_scoring(scorer)
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
                    write_bytes(self.paths[shard.index], shard.content)
                    self.progress.update(shard.groups, shard.tokens)
        if waiting:
            raise DataError(f"no worker gave back the shards {sorted(waiting)}; run again to go on")
        return len(missing), len(unscored), counts

    def finish(self, *, scored: bool) -> dict[str, Any]:
        """Count everything; `scored` is whether rewards were asked for."""
        counts = GroupCounts()
        for path in self.paths:
            counts.add(read_table(path))
        self.manifest = write_manifest(
            self.folder, {**self.manifest, "complete": True, "counts": counts.to_dict()}
        )
        if scored and not counts.rewards:
            reasons = counts.reasons(self.manifest["scoring"]["rewards"]) or "their weighted sum is no number"
            raise RewardError(
                f"every reward is null, so no completion is better than another: {reasons}. The groups stay in "
                f"{str(self.folder)!r}; mend the reward and run again: nothing is drawn anew, and what failed is "
                "asked again"
            )
        return self.manifest
