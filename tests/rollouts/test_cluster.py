"""Whole shards in workers: the same files as from one process. Here the workers are this process (`spread=map`)."""

import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rollouts.cluster import ShardWorkers
from nonpareil.rollouts.store import shard_path
from tests.rollouts.conftest import combined, count_of_good, length, make_engine, never, roll, shards, state

ENGINE = {"engine": "transformers", "dtype": "float32", "special_tokens": "in the text"}


def failing(completions, **columns):
    return [None if "good" in text else 1.0 for text in completions]


def make_reward():
    return combined(length, failing)


def workers(spread=map, engine=make_engine, reward=make_reward, settings=ENGINE):
    return ShardWorkers(engine, reward, settings, spread)


def backwards(worker, tasks):
    """Answers in another order than asked, of a worker that was sent as Ray sends it."""
    sent = pickle.dumps(worker)
    return reversed([pickle.loads(sent)(task) for task in tasks])


def tables(folder):
    """Columns and metadata of every shard."""
    read = [pq.read_table(path) for path in shards(folder)]
    assert len(read) == 4
    return [(table.schema.metadata, table.to_pydict()) for table in read]


def test_shards_and_manifest_are_those_of_one_process(tmp_path):
    alone = roll(tmp_path / "alone", reward=make_reward)
    spread = roll(tmp_path / "spread", engine=workers(backwards), reward=make_reward)
    assert (spread.shards_drawn, spread.shards_scored) == (4, 4)
    assert spread.manifest == alone.manifest
    assert alone.manifest["counts"]["failed_rewards"]["failing"]["count"] > 0
    assert tables(tmp_path / "spread") == tables(tmp_path / "alone")


class Counting(FunctionReward):
    """As a judge does, it counts its calls for as long as it lives."""

    def __init__(self):
        super().__init__(length)
        self.counts = Counter()

    def score(self, request):
        self.counts["calls"] += len(request)
        return super().score(request)


def test_what_rewards_count_is_summed_over_workers(tmp_path):
    make = lambda: CombinedReward([Counting()])  # noqa: E731
    two = [None, None]

    def in_two(worker, tasks):
        """Two processes' worth of workers, each with a reward of its own that lives on."""
        for task in tasks:
            two[task.index % 2] = two[task.index % 2] or replace(worker)
            yield two[task.index % 2](task)

    spread = roll(tmp_path / "spread", engine=workers(in_two, reward=make), reward=make)
    alone = roll(tmp_path / "alone", reward=make)
    completions = spread.manifest["counts"]["completions"]
    assert spread.reward_counts == alone.reward_counts == {"calls": completions}
    assert two[0].reward is not two[1].reward
    assert roll(tmp_path / "spread", engine=workers(in_two, reward=make), reward=make).reward_counts == {}


@pytest.mark.parametrize("first", ["alone", "spread"])
def test_one_finishes_what_the_other_began(tmp_path, first):
    whole = roll(tmp_path / "whole", reward=make_reward)
    engines = {"alone": make_engine, "spread": workers()}
    folder = tmp_path / "out"
    roll(folder, engine=engines.pop(first), reward=make_reward)
    for index in (1, 3):
        shard_path(folder, index).unlink()
    kept = [shard_path(folder, index) for index in (0, 2)]
    before = state(kept)
    result = roll(folder, engine=engines.popitem()[1], reward=make_reward)
    assert (result.shards_drawn, result.shards_scored) == (2, 2)
    assert state(kept) == before
    assert tables(folder) == tables(tmp_path / "whole")
    assert result.manifest == whole.manifest


def test_what_is_drawn_is_only_scored(tmp_path):
    roll(tmp_path / "out", reward=None)
    shard_path(tmp_path / "out", 2).unlink()
    result = roll(tmp_path / "out", engine=workers(), reward=make_reward)
    assert (result.shards_drawn, result.shards_scored) == (1, 4)
    again = roll(tmp_path / "out", engine=workers(engine=never), reward=make_reward)
    assert (again.shards_drawn, again.shards_scored) == (0, 0)
    roll(tmp_path / "alone", reward=make_reward)
    assert tables(tmp_path / "out") == tables(tmp_path / "alone")


def test_another_reward_is_added_without_drawing(tmp_path):
    def good():
        return combined(count_of_good)

    for folder, engine in (("alone", make_engine), ("spread", workers())):
        roll(tmp_path / folder, engine=engine, reward=make_reward)
    roll(tmp_path / "alone", engine=never, reward=good)
    result = roll(tmp_path / "spread", engine=workers(engine=never, reward=good), reward=good)
    assert (result.shards_drawn, result.shards_scored) == (0, 4)
    assert tables(tmp_path / "spread") == tables(tmp_path / "alone")


def test_a_shard_answered_twice_is_written_once(tmp_path):
    def twice(worker, tasks):
        for task in tasks:
            yield worker(task)
            before = state([shard_path(folder, task.index)])
            yield worker(task)
            assert state([shard_path(folder, task.index)]) == before

    folder = tmp_path / "out"
    result = roll(folder, engine=workers(twice), reward=make_reward)
    assert result.manifest["counts"]["prompts"] == 8
    assert (result.shards_drawn, result.shards_scored) == (4, 4)


def test_a_shard_without_an_answer_is_told_and_drawn_by_the_next_run(tmp_path):
    def forgetful(worker, tasks):
        return [worker(task) for task in tasks if task.index != 2]

    with pytest.raises(DataError, match=r"no worker gave back the shards \[2\]; run again"):
        roll(tmp_path / "out", engine=workers(forgetful), reward=make_reward)
    result = roll(tmp_path / "out", engine=workers(), reward=make_reward)
    assert (result.shards_drawn, result.shards_scored) == (1, 1)


def test_a_finished_shard_is_on_disk_before_the_next_is_drawn(tmp_path):
    there = []

    def watching(worker, tasks):
        for task in tasks:
            there.append(len(shards(tmp_path / "out")))
            yield worker(task)

    roll(tmp_path / "out", engine=workers(watching), reward=make_reward)
    assert there == [0, 1, 2, 3]


def test_relative_paths_mean_the_same_in_a_worker(tmp_path, monkeypatch):
    """A model named `./policy` is beside the run's command, wherever Ray starts its workers."""
    (tmp_path / "here").mkdir()
    (tmp_path / "policy").touch()
    monkeypatch.chdir(tmp_path)

    def engine_of_a_path():
        assert Path("policy").is_file()
        return make_engine()

    def elsewhere(worker, tasks):
        for task in tasks:
            os.chdir(tmp_path / "here")
            yield worker(task)
            os.chdir(tmp_path)

    assert (
        roll(tmp_path / "out", engine=workers(elsewhere, engine=engine_of_a_path), reward=None).shards_drawn
        == 4
    )


def test_a_worker_with_another_reward_or_engine_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"another reward than the run:\n  length: \{.*\n  failing: \{.*None here"
    ):
        roll(tmp_path / "a", engine=workers(reward=lambda: combined(count_of_good)), reward=make_reward)
    settings = {**ENGINE, "dtype": "bfloat16"}
    with pytest.raises(ConfigError, match="dtype: 'bfloat16' where the run began, 'float32' here"):
        roll(tmp_path / "b", engine=workers(settings=settings), reward=make_reward)
    with pytest.raises(ConfigError, match="make_reward is None"):
        roll(tmp_path / "c", engine=workers(reward=None), reward=make_reward)
    assert not [*shards(tmp_path / "a"), *shards(tmp_path / "b"), *shards(tmp_path / "c")]


def test_workers_with_another_engine_do_not_go_on(tmp_path):
    roll(tmp_path / "out", reward=make_reward)
    shard_path(tmp_path / "out", 0).unlink()
    with pytest.raises(ConfigError, match=r"engine\.dtype: 'float32' there, 'bfloat16' now"):
        roll(tmp_path / "out", engine=workers(settings={**ENGINE, "dtype": "bfloat16"}), reward=make_reward)
