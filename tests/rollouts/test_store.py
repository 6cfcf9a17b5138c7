import math
import subprocess
import sys
from dataclasses import replace

import datasets
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import DataError, NotFiniteError
from nonpareil.rollouts import read_groups, read_shard, write_shard
from nonpareil.rollouts.store import column_types, to_groups, to_table
from tests.rollouts.conftest import group_of

CHAT = [{"role": "user", "content": "the film"}]


def test_the_columns_are_the_design_s(tmp_path):
    group = group_of([1.0, None], answer=3)
    group.rewards_by_name = {"rm": [0.5, None]}
    schema = pq.read_schema(write_shard(tmp_path / "a.parquet", [group]))
    assert {field.name: str(field.type) for field in schema} == {
        "prompt_id": "string",
        "prompt": "string",
        "prompt_token_ids": "list<element: int32>",
        "completions": "list<element: string>",
        "completion_token_ids": "list<element: list<element: int32>>",
        "finish_reasons": "list<element: string>",
        "logprobs": "list<element: list<element: float>>",
        "rewards/rm": "list<element: double>",
        "rewards": "list<element: double>",
        "answer": "int64",
    }


@pytest.mark.parametrize("prompt", ["the film", CHAT])
def test_groups_come_back_as_they_were(tmp_path, prompt):
    groups = [
        replace(
            group_of([1.0, None], ["good", ""], prompt=prompt, answer=[1, 2], note=None),
            completion_token_ids=[[], [3, 2]],
            logprobs=[[], [-0.5, -1.25]],
            rewards_by_name={"rm": [1.0, None], "length": [0.0, 2.0]},
        ),
        group_of(None, ["x", "y", "z"], prompt=prompt, prompt_id="p-1", answer=None, note=None),
    ]
    assert read_shard(write_shard(tmp_path / "a.parquet", groups)) == groups


def test_dataset_columns_named_like_ours_ride_along(tmp_path):
    columns = {"prompt_id": "theirs", "completions": 1, "rewards": 2, "rewards/x": 3, "columns/y": 4}
    group = group_of([1.0, 2.0])
    group.columns = columns
    path = write_shard(tmp_path / "a.parquet", [group])
    assert read_shard(path) == [group]
    assert "columns/prompt_id" in pq.read_schema(path).names


def test_log_probs_that_are_none_are_not_kept_whatever_drew_them(tmp_path):
    bad = replace(group_of([1.0], ["good"]), completion_token_ids=[[3, 2]], logprobs=[[-0.5, float("-inf")]])
    with pytest.raises(NotFiniteError, match=f"prompt {bad.prompt_id}: log-probs of its completions are NaN"):
        write_shard(tmp_path / "a.parquet", [group_of([1.0], ["good"], prompt_id="fine"), bad])
    assert not (tmp_path / "a.parquet").exists()


def test_one_type_a_column_over_all_shards(tmp_path):
    rows = [{"answer": None}, {"answer": 2.5}]
    types = column_types(rows)
    table = to_table([group_of([1.0], **rows[0])], types)
    assert table.schema.field("answer").type == pa.float64()
    with pytest.raises(DataError, match="column 'answer' cannot be stored in Parquet"):
        column_types([{"answer": 1}, {"answer": "one"}])
    with pytest.raises(DataError, match="column 'answer' cannot be stored"):
        column_types([{"answer": object()}])


def test_chunks_and_slices_of_a_table_read_alike():
    groups = [group_of([1.0] * size, prompt_id=f"p-{size}") for size in (1, 3, 2)]
    parts = [to_table(groups[:1]), to_table(groups[1:])]
    assert to_groups(pa.concat_tables(parts)) == groups
    assert to_groups(to_table(groups).slice(1, 1)) == groups[1:2]


def test_mixed_prompts_are_refused():
    with pytest.raises(DataError, match="string prompts and conversations are mixed"):
        to_table([group_of([1.0]), group_of([1.0], prompt=CHAT)])


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_corrupt_shard_is_named_with_its_remedy(tmp_path, damage):
    path = write_shard(tmp_path / "a.parquet", [group_of([1.0, 2.0], ["good"] * 2) for _ in range(50)])
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[60] ^= 0xFF  # within the first page: the checksum tells
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": content}[damage])
    with pytest.raises(DataError, match=r"a\.parquet is corrupt .*delete it and rerun: only that shard"):
        read_shard(path)


def test_what_holds_no_groups_is_refused(tmp_path):
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has no column 'prompt_id' \(it has: prompt\)"):
        read_groups(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no such file of groups"):
        read_groups(tmp_path / "b.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no shards"):
        read_groups(tmp_path / "none")


def test_datasets_and_pandas_read_the_folder_as_it_is(rollouts, tmp_path):
    groups = rollouts.groups()
    frame = pandas.read_parquet(rollouts.output_dir / "data")
    by_name = datasets.load_dataset(
        "parquet",
        data_dir=str(rollouts.output_dir / "data"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    whole = datasets.load_dataset(str(rollouts.output_dir), split="train", cache_dir=str(tmp_path / "cache"))
    assert whole.column_names == by_name.column_names == list(frame.columns)
    assert list(frame["prompt_id"]) == by_name["prompt_id"] == [group.prompt_id for group in groups]
    for row, series, group in zip(by_name, frame.to_dict("records"), groups, strict=True):
        assert row["completion_token_ids"] == group.completion_token_ids
        assert [list(ids) for ids in series["completion_token_ids"]] == group.completion_token_ids
        assert row["rewards"] == row["rewards/length"] == list(series["rewards"]) == group.rewards
        assert all(math.isfinite(value) for values in row["logprobs"] for value in values)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_reading_leaves_no_thread_of_arrow(tmp_path):
    """One that is still there when Python ends would abort the process, some of the time."""
    write_shard(tmp_path / "0.parquet", [group_of([0.0, 1.0])])
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "prompts.parquet")
    code = f"""
import os
from pathlib import Path
from nonpareil.rollouts.sources import read_rows
from nonpareil.rollouts.store import read_shard
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
read_shard(Path({str(tmp_path / "0.parquet")!r}))
list(read_rows({str(tmp_path / "prompts.parquet")!r}, "train", None, "prompt"))
print(threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
