"""A shard is counted and recognised without its completions, and no bit that is read for it changes unseen."""

import hashlib
import io
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from nonpareil.constant_rewards import RewardSpread
from nonpareil.errors import DataError
from nonpareil.rollouts import read_groups, summaries, write_shard
from nonpareil.rollouts.checksum import CHECKSUM_KEY, seal_holds, sealed_footer
from nonpareil.rollouts.store import ShardNotes, read_table, to_table
from nonpareil.rollouts.summaries import summary_of
from tests.rollouts.conftest import combined, count_of_good, group_of, never, roll, shards, state

NOTES = ShardNotes(rewards={"rm": {}}, failures={"rm": {"why": 2}})


def uneven():
    """Empty completions and token ids (a server that gives none), nulls, groups of two sizes."""
    first = replace(
        group_of([1.0, None, 2.0], ["good", "", "x"], finish_reasons=["stop", "length", "stop"]),
        completion_token_ids=[[5, 6], [], [7]],
        logprobs=[[-0.5, -0.25], [], [-1.0]],
        rewards_by_name={"rm": [3.0, None, 3.0]},
    )
    second = replace(
        group_of([None, 0.5], prompt_id="p-1"),
        completion_token_ids=[[], []],
        logprobs=[[], []],
        rewards_by_name={"rm": [None, 1.0]},
    )
    return [first, second]


def test_a_shard_is_counted_without_its_completions(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "a.parquet", uneven(), notes=NOTES)
    monkeypatch.setattr(summaries, "read_table", never)
    found = summary_of(path)
    assert (found.prompts, found.completions, found.tokens, found.rewards) == (2, 5, 3, 3)
    assert (found.prompt_ids, found.group_sizes) == (["p-0", "p-1"], {2, 3})
    assert found.finish_reasons == {"stop": 4, "length": 1}
    assert found.notes == NOTES
    assert found.spread.constant() == ["rm"]


@pytest.mark.parametrize(
    "rewards",
    [
        [[1.0, 1.0], [2.0, 2.0]],
        [[1.0, 1.0], [2.0, 3.0]],
        [[None, 1.0], [2.0, None]],
        [[None, None], [1e8, 1e8 + 0.1]],
        [[None, None], [None, None]],
        [[1.0], [2.0]],
        [[1.0, 2.0], [1.0, 1.0, 1.0]],
    ],
)
def test_whether_a_reward_tells_completions_apart_is_what_the_groups_say(tmp_path, rewards):
    groups = [
        replace(group_of(values, prompt_id=f"p-{i}"), rewards_by_name={"rm": values})
        for i, values in enumerate(rewards)
    ]
    expected = RewardSpread()
    expected.add("rm", rewards)
    found = summary_of(write_shard(tmp_path / "a.parquet", groups, notes=NOTES)).spread
    assert vars(found) == vars(expected)


def test_every_flipped_byte_is_told_or_is_of_what_is_not_read(rollouts):
    path = shards(rollouts.output_dir)[1]
    content, whole = path.read_bytes(), summary_of(path)
    start = len(content) - len(sealed_footer(path))
    seal = content.rindex(b"nonpareil-sha256:") + len(
        b"nonpareil-sha256:"
    )  # of all bytes, for who reads them
    told = {"pages": 0, "footer": 0}
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = summary_of(path)
        except DataError:
            told["pages" if place < start else "footer"] += 1
        else:
            assert place < start or 0 <= place - seal < 64
            assert vars(replace(found, spread=whole.spread)) == vars(whole)
            assert vars(found.spread) == vars(whole.spread)
    assert told["footer"] > 150
    assert told["pages"] > 5


def test_a_damaged_completion_is_told_by_whoever_reads_it(rollouts):
    path = shards(rollouts.output_dir)[1]
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path).row_group(0)
    paths = [metadata.column(i).path_in_schema for i in range(metadata.num_columns)]
    column = metadata.column(paths.index("completions.list.element"))
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 4
    path.write_bytes(content)
    again = roll(rollouts.output_dir, engine=never)
    assert again.manifest == rollouts.manifest
    for read in (
        lambda: read_groups(rollouts.output_dir),
        lambda: roll(rollouts.output_dir, engine=never, reward=combined(count_of_good)),
    ):
        with pytest.raises(DataError, match=r"shard-00001.parquet is corrupt .*delete it and rerun: only"):
            read()


def test_a_run_that_is_done_reads_no_shard_whole(rollouts, monkeypatch):
    monkeypatch.setattr(summaries, "read_table", never)
    again = roll(rollouts.output_dir, engine=never)
    assert again.manifest == rollouts.manifest
    assert again.manifest["counts"]["completions"] == 32


def write_as_before(path, table):
    """As an earlier version did, whose footers had no checksum of their own."""
    mark, zeros, buffer = "nonpareil-sha256:", "0" * 64, io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({CHECKSUM_KEY: mark + zeros})
    content = buffer.getvalue()
    sealed = content.replace((mark + zeros).encode(), (mark + hashlib.sha256(content).hexdigest()).encode())
    path.write_bytes(sealed)


def test_a_folder_of_an_earlier_version_is_checked_whole_and_gone_on_with(rollouts):
    paths, groups = shards(rollouts.output_dir), rollouts.groups()
    for path in paths:
        write_as_before(path, read_table(path))
        assert (seal_holds(path.read_bytes()), sealed_footer(path)) == (True, None)
    before = state(paths)
    again = roll(rollouts.output_dir, engine=never)
    assert again.manifest == rollouts.manifest
    assert again.groups() == groups
    assert state(paths) == before
    content = bytearray(paths[1].read_bytes())
    content[len(content) // 5] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00001.parquet is corrupt"):
        roll(rollouts.output_dir, engine=never)
    paths[1].unlink()
    assert roll(rollouts.output_dir).groups() == groups
    assert [sealed_footer(path) is not None for path in paths] == [False, True, False, False]


def test_a_file_without_any_checksum_is_counted_as_it_is(tmp_path):
    pq.write_table(to_table(uneven()).replace_schema_metadata(None), tmp_path / "a.parquet")
    found = summary_of(tmp_path / "a.parquet")
    assert (found.completions, found.tokens, found.group_sizes) == (5, 3, {2, 3})
