"""Rewards that float32 would tie keep their order on disk, and files that have them in float32 are still read."""

import json
from typing import Any

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.evaluation import evaluate_groups
from nonpareil.records import Group
from nonpareil.rollouts import best, read_groups, read_shard
from nonpareil.rollouts.checksum import sealed_parquet
from nonpareil.rollouts.store import METADATA_KEY, narrow_rewards, read_table, write_table
from tests.rollouts.conftest import combined, group_of, never, roll, shards


def close(completions: list[str], **columns: Any) -> list[float]:
    """In float32, whose neighbours near 1e8 are 8 apart, all of these are 1e8."""
    return [1e8 + 0.1 * i for i in range(len(completions))]


def test_close_rewards_are_stored_selected_and_read_by_others_as_they_are(tmp_path):
    result = roll(tmp_path / "out", reward=combined(close))
    expected = [[1e8 + 0.1 * (4 * (row % 2) + i) for i in range(4)] for row in range(8)]
    assert [group.rewards for group in result.groups()] == expected
    assert [group.rewards_by_name["close"] for group in result.groups()] == expected
    assert {best(group) for group in result.groups()} == {3}
    frame = pandas.read_parquet(tmp_path / "out" / "data")
    assert [list(row) for row in frame["rewards"]] == expected
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "out" / "data"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["rewards/close"][:] == expected


def test_the_yardstick_tells_them_apart(tmp_path):
    import torch

    def groups(shift: float) -> list[Group]:
        return [group_of([1e8 + shift, 1e8 + shift], ["a", "b"], prompt_id=f"p{i}") for i in range(3)]

    evaluation = evaluate_groups(
        groups(0.1), groups(0.0), policy_kl=torch.rand(3, 2), policy_log_ratio=torch.rand(3, 2), n=(2,)
    )
    assert (evaluation.comparison.wins.estimate, evaluation.comparison.ties.estimate) == (1.0, 0.0)
    assert evaluation.comparison.difference.estimate == pytest.approx(0.1, rel=1e-6)


def narrow(path: Any) -> None:
    """Rewrite a shard as an earlier version wrote it: rewards in float32, all else the same."""
    table = read_table(path)
    for name in ("rewards", "rewards/close"):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(pa.list_(pa.float32())))
    path.write_bytes(sealed_parquet(table))


def test_a_folder_in_float32_is_read_and_becomes_one_type_when_it_is_gone_on_with(tmp_path):
    roll(tmp_path / "out", reward=combined(close))
    paths = shards(tmp_path / "out")
    for path in paths:
        narrow(path)
    assert {value for group in read_groups(tmp_path / "out") for value in group.rewards} == {1e8}
    before = [path.read_bytes() for path in paths]
    result = roll(tmp_path / "out", reward=combined(close), engine=never)
    assert (result.shards_drawn, result.shards_scored) == (0, 0), "nothing to do: nothing is rewritten"
    assert [path.read_bytes() for path in paths] == before
    paths[2].unlink()
    calls: list[int] = []

    def counted(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        return close(completions)

    counted.__name__ = "close"
    reward = combined(counted)
    notes = json.loads(pq.read_schema(paths[0]).metadata[METADATA_KEY])
    reward.rewards[0].describe = lambda: notes["rewards"]["close"]  # as it was scored
    roll(tmp_path / "out", reward=reward)
    assert calls == [8], "what is stored is not asked again"
    assert not any(narrow_rewards(pq.read_schema(path)) for path in paths)
    groups = read_groups(tmp_path / "out")
    assert len({value for group in groups[4:6] for value in group.rewards}) == 8
    frame = pandas.read_parquet(tmp_path / "out" / "data")
    assert [list(row) for row in frame["rewards"]] == [group.rewards for group in groups]


def test_nan_and_infinities_in_the_files_of_others_are_nulls(tmp_path):
    from nonpareil.rollouts.store import to_table

    table = to_table([group_of([1.0, 2.0, 3.0], ["a", "b", "c"])])
    place = table.column_names.index("rewards")
    values = pa.array([[1.0, float("nan"), float("inf")]], pa.list_(pa.float64()))
    path = write_table(tmp_path / "a.parquet", table.set_column(place, "rewards", values))
    assert read_shard(path)[0].rewards == [1.0, None, None]
