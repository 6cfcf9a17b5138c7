"""Draw and score whole shards in other processes, wherever they are; this one alone writes the folder."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nonpareil.engines.base import PROMPT_CACHE, Engine
from nonpareil.errors import ConfigError
from nonpareil.files import jsonable
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.checksum import sealed_parquet
from nonpareil.rollouts.scoring import reward_settings, score_table
from nonpareil.rollouts.store import ShardNotes, to_table
from nonpareil.settings import differing


@dataclass(frozen=True)
class ShardTask:
    """A shard that lacks its draws, or its scores alone."""

    index: int
    prompts: Sequence[Prompt]
    stored: pa.Table | None = None
    """What lies on disk, where it was drawn before."""
    notes: ShardNotes | None = None
    """Of which run it is, for one that is drawn now."""


@dataclass(frozen=True)
class FinishedShard:
    """A shard as it is to lie on disk."""

    index: int
    content: bytes
    """Of the Parquet file."""
    groups: int
    tokens: int
    """Drawn now; 0 where it was only scored."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the rewards counted at it, of calls made and verdicts lost."""


@dataclass(frozen=True)
class ShardWorkers:
    """In the place of an engine in `draw_and_score`: processes that draw and score a shard at a time.

    The draws are those of `make_engine`'s engine in this process, bit for bit where the processor and its
    number of threads are the same: they follow from seed, prompt and shard.
    """

    make_engine: Callable[[], Engine]
    """Sent to each worker, which calls it when it first draws."""
    make_reward: Callable[[], CombinedReward] | None
    """Likewise, when it first scores; None where nothing is scored."""
    settings: Mapping[str, Any]
    """What the engine says of itself, known without it."""
    spread: Callable[[Callable[[ShardTask], FinishedShard], Iterable[ShardTask]], Iterable[FinishedShard]]
    """Calls the function with every task, in whatever process, and gives what it returns as it comes:
    `engines.ray.RayPool(...).map`, or the builtin `map`."""

    def describe(self) -> dict[str, Any]:
        """The engine's settings: where it runs is none of them."""
        return dict(self.settings)

    def finish(
        self,
        tasks: Iterable[ShardTask],
        sampling: SamplingParams,
        num_generations: int,
        types: Mapping[str, pa.DataType | None],
        rewards: Mapping[str, Any] | None,
    ) -> Generator[FinishedShard]:
        """The shards, drawn and scored, in any order.

        Args:
            tasks: the shards.
            sampling: as the engine takes it.
            num_generations: completions per prompt.
            types: of the dataset columns, over all shards.
            rewards: what each reward must say of itself, by name; None scores nothing.

        Raises:
            ConfigError: rewards are asked for and `make_reward` is None, or a worker's engine or reward is
                another than this process knows.
            NonpareilError: as the engine and the rewards.
        """
        if rewards is not None and self.make_reward is None:
            raise ConfigError("these workers score nothing: make_reward is None; give it, or reward=None")
        make_reward = self.make_reward if rewards is not None else None
        worker = ShardWorker(
            self.make_engine, make_reward, sampling, num_generations, types, self.settings, rewards or {}
        )
        yield from self.spread(worker, tasks)


@dataclass
class ShardWorker:
    """What a worker process does with a shard. It loads engine and reward once, when it first needs them."""

    make_engine: Callable[[], Engine]
    make_reward: Callable[[], CombinedReward] | None
    sampling: SamplingParams
    num_generations: int
    types: Mapping[str, pa.DataType | None]
    engine_settings: Mapping[str, Any]
    reward_settings: Mapping[str, Any]
    folder: str = field(default_factory=os.getcwd)
    """Of the process that made it: relative paths mean the same in a worker on the same files."""
    engine: Engine | None = None
    reward: CombinedReward | None = None

    def __call__(self, task: ShardTask) -> FinishedShard:
        """Draw what is not drawn, score it, and give the file's content.

        Raises:
            ConfigError: engine or reward are others here than where the run was begun.
        """
        tokens, table, counts = 0, task.stored, Counter[str]()
        if table is None:
            draws = self._engine().draw(task.prompts, self.num_generations, self.sampling)
            groups = [Group.of(p, d) for p, d in zip(task.prompts, draws, strict=True)]
            tokens = sum(len(ids) for one in draws for ids in one.completion_token_ids)
            table = to_table(groups, self.types, task.notes)
        if self.make_reward is not None:
            reward = self._reward(self.make_reward)
            counts.subtract(reward.counts)
            table = score_table(table, reward, self.reward_settings)
            counts.update(reward.counts)
        return FinishedShard(task.index, sealed_parquet(table), len(table), tokens, counts)

    def _engine(self) -> Engine:
        if self.engine is None:
            self._enter_folder()
            self.engine = self.make_engine()
            described = jsonable(self.engine.describe())
            described.pop(PROMPT_CACHE, None)
            check_alike("engine", described, self.engine_settings)
        return self.engine

    def _reward(self, make: Callable[[], CombinedReward]) -> CombinedReward:
        if self.reward is None:
            self._enter_folder()
            self.reward = make()
            check_alike("reward", reward_settings(self.reward), self.reward_settings)
        return self.reward

    def _enter_folder(self) -> None:
        with suppress(OSError):  # a node without it: paths that are not there are told by whoever reads them
            os.chdir(self.folder)


def check_alike(what: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse a worker that would draw or score otherwise than the manifest says.

    Raises:
        ConfigError: naming every setting that differs, here (in the worker) and there (where the run began).
    """
    lines = [
        f"  {key}: {begun!r} where the run began, {now!r} here"
        for key, (begun, now) in differing(there, here).items()
    ]
    if lines:
        raise ConfigError(
            f"a worker on {socket.gethostname()} has another {what} than the run:\n" + "\n".join(lines) + "\n"
            "Put the same files and packages on every node; where a dtype differs, the machines do: name it "
            "(dtype, reward_dtype)."
        )
