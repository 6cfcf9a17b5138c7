"""A folder of groups is read as the run that its manifest tells of, or refused by what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts import read_groups, read_shard, store, write_shard
from nonpareil.rollouts.reading import read_available
from nonpareil.rollouts.store import read_table, write_table
from tests.rollouts.conftest import (
    SAMPLING,
    combined,
    count_of_good,
    group_of,
    make_prompts,
    never,
    roll,
    shards,
    state,
)


def lacks_one(folder: Path) -> None:
    shards(folder)[1].unlink()


def copied(folder: Path) -> None:
    shutil.copy(shards(folder)[0], folder / "data" / "shard-00000 (1).parquet")


def copied_behind_the_last(folder: Path) -> None:
    shutil.copy(shards(folder)[0], folder / "data" / "shard-00004.parquet")


def copied_over_another(folder: Path) -> None:
    shutil.copy(shards(folder)[0], shards(folder)[3])


def swapped(folder: Path) -> None:
    first, second = shards(folder)[:2]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def foreign(folder: Path) -> None:
    write_shard(folder / "data" / "more.parquet", [group_of([1.0, 2.0])])


def of_another_seed(folder: Path) -> None:
    other = roll(folder.parent / "other", sampling=replace(SAMPLING, seed=4))
    shutil.copy(shards(other.output_dir)[2], shards(folder)[2])


def of_fewer_completions(folder: Path) -> None:
    table = read_table(shards(folder)[2])
    at = table.column_names.index("completions")
    write_table(shards(folder)[2], table.set_column(at, "completions", [[["x"]] * len(table)]))


def of_fewer_prompts(folder: Path) -> None:
    write_table(shards(folder)[2], read_table(shards(folder)[2]).slice(0, 1))


def scored_by_another(folder: Path) -> None:
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    roll(other, engine=never, reward=combined(count_of_good))
    shutil.copy(shards(other)[2], shards(folder)[2])


DAMAGE: dict[Callable[[Path], None], str] = {
    lacks_one: r"3 of 4 shards are there; 1 are not drawn \(the first is shard-00001.parquet\), though",
    copied: r"'.*shard-00000 \(1\).parquet' is none of the run's 4 shards; move it out",
    copied_behind_the_last: r"'.*shard-00004.parquet' is none of the run's 4 shards; move it out",
    copied_over_another: r"shard-00003.parquet holds other prompts than its place in the run: it is shard 0",
    swapped: r"shard-00000.parquet holds other prompts than its place in the run: it is shard 1; delete it",
    foreign: r"'.*more.parquet' is none of the run's 4 shards; move it out",
    of_another_seed: r"shard-00002.parquet is of another run: it was drawn with other settings; delete it and",
    of_fewer_completions: r"shard-00002.parquet holds groups of \[1\] completions, and the run has num_gen.*=4",
    of_fewer_prompts: r"shard-00002.parquet holds 1 prompts, and its place in the run has 2; delete it",
    scored_by_another: r"3 of 4 shards are there; 1 lack these scores \(the first is shard-00002.parquet\)",
}
READ_ALONE = (lacks_one, scored_by_another)
"""What a run mends by itself."""


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_folder_that_is_not_its_run_is_refused_by_name(rollouts, damage):
    folder = rollouts.output_dir
    groups = rollouts.groups()
    damage(folder)
    for read in (read_groups, read_available):
        for path in (folder, folder / "data"):
            with pytest.raises(DataError, match=DAMAGE[damage]):
                read(path)
    if damage in READ_ALONE:
        assert [(g.completions, g.rewards) for g in roll(folder).groups()] == [
            (g.completions, g.rewards) for g in groups
        ]
    else:
        before = state(shards(folder))
        with pytest.raises(DataError, match=DAMAGE[damage]):
            roll(folder, engine=never)
        assert state(shards(folder)) == before


def test_an_unfinished_run_says_how_much_of_it_is_there(rollouts):
    folder, groups = rollouts.output_dir, rollouts.groups()
    before = state(shards(folder)[:1])
    reward = combined(count_of_good)
    reward.rewards[0].score = stops_after(reward.rewards[0].score, 2)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        roll(folder, engine=never, reward=reward)
    assert state(shards(folder)[:1]) != before
    shards(folder)[0].unlink()

    lacking = "1 of 4 shards are there; 1 are not drawn (the first is shard-00000.parquet) and 2 lack these"
    with pytest.raises(DataError, match=r"is not finished: 1 of 4 shards are there; .* to finish it"):
        read_groups(folder)
    part, said = read_available(folder)
    assert said.startswith(lacking)
    # Only groups with the new reward: two rewards in one column would be compared with each other.
    assert [group.completions for group in part] == [group.completions for group in groups[2:4]]
    assert all(g.rewards == pytest.approx(count_of_good(g.completions)) for g in part)
    shards(folder)[0].unlink()
    with pytest.raises(DataError, match="is not finished: 0 of 4 shards are there"):
        read_available(folder)


def stops_after(score: Callable, calls: int) -> Callable:
    made = []

    def stopping(request):
        made.append(request)
        if len(made) > calls:
            raise KeyboardInterrupt
        return score(request)

    return stopping


def test_shards_without_their_manifest_are_read_if_they_are_all_there(rollouts, tmp_path):
    folder, groups = rollouts.output_dir, rollouts.groups()
    (folder / "manifest.json").unlink()
    assert read_groups(folder) == read_groups(folder / "data") == groups
    copied(folder)
    with pytest.raises(DataError, match="holds 10 of its run's 8 prompts"):
        read_groups(folder)
    shards(folder)[0].unlink()  # the copy is its only one now
    assert {g.prompt_id for g in read_groups(folder)} == {g.prompt_id for g in groups}
    lacks_one(folder)
    with pytest.raises(DataError, match="holds 6 of its run's 8 prompts"):
        read_groups(folder / "data")
    foreign(folder)
    with pytest.raises(DataError, match="holds shards of different runs, or other files among them"):
        read_groups(folder)


def test_plain_files_stay_readable_and_ids_stand_once(rollouts, tmp_path):
    groups = rollouts.groups()
    assert read_groups(shards(rollouts.output_dir)[1]) == groups[2:4]
    plain = tmp_path / "plain"
    plain.mkdir()
    for part in (0, 1):
        frame = pq.read_table(shards(rollouts.output_dir)[part]).to_pandas()
        frame.to_parquet(plain / f"{part}.parquet")
    assert [group.completions for group in read_groups(plain)] == [group.completions for group in groups[:4]]
    shutil.copy(plain / "0.parquet", plain / "2.parquet")
    with pytest.raises(
        DataError, match=rf"plain: 2 of 6 repeat another's prompt_id \('{groups[0].prompt_id}'"
    ):
        read_groups(plain)
    twice = write_shard(tmp_path / "twice.parquet", [group_of([1.0, 2.0]), group_of([1.0, 2.0])])
    for read in (read_groups, read_shard):
        with pytest.raises(DataError, match=r"twice.parquet: 1 of 2 repeat another's prompt_id \('p-0'"):
            read(twice)


def test_a_lost_manifest_is_made_anew_from_the_shards(rollouts):
    folder, before = rollouts.output_dir, state(shards(rollouts.output_dir))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(DataError, match=r"manifest.json is corrupt \(its checksum .* delete it and rerun"):
        roll(folder, engine=never)
    path.unlink()
    again = roll(folder, engine=never, shard_size=64)
    assert (again.shards_drawn, again.shards_scored) == (0, 0)
    assert again.manifest == rollouts.manifest == json.loads(path.read_text())
    assert state(shards(folder)) == before
    path.unlink()
    with pytest.raises(ValueError, match=r"seed: 3 there, 4 now"):
        roll(folder, engine=never, sampling=replace(SAMPLING, seed=4))


def test_groups_of_a_folder_are_those_of_its_prompts(rollouts):
    assert [group.prompt_id for group in rollouts.groups()] == [p.prompt_id for p in make_prompts()]


@pytest.mark.parametrize("path", [None, 3, ["folder"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigError, match=r"path is a \w+; give a folder of groups or a file"):
        read_groups(path)


def test_scripts_may_read_groups_from_where_they_are_stored(tmp_path):
    roll(tmp_path / "run", prompts=make_prompts(2))
    assert store.read_groups(tmp_path / "run") == read_groups(tmp_path / "run")
