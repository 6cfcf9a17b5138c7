"""The numbers of groups, read from columns, make the curve that the groups make, to the last digit."""

import dataclasses
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import NonpareilError
from nonpareil.evaluation import best_of_n_report
from nonpareil.evaluation.report import write_curve
from nonpareil.records import Group, GroupNumbers
from nonpareil.rollouts import write_shard
from nonpareil.rollouts.manifest import read_manifest, write_manifest
from nonpareil.rollouts.numbers import read_numbers
from nonpareil.rollouts.reading import read_available
from nonpareil.rollouts.store import read_table, write_table
from tests.rollouts.conftest import group_of, shards
from tests.rollouts.test_reading import DAMAGE


def made(reward: Callable[[random.Random], float | None], count: int = 40, m: int = 8) -> list[Group]:
    """Groups of completions of uneven length, of which some are equal, not in the order of their ids."""
    rng = random.Random(count + m)
    groups = []
    for place in range(count):
        group = group_of([reward(rng) for _ in range(m)], prompt_id=f"é-{place * 7 % count}")
        group.completion_token_ids = [
            [rng.randrange(3) for _ in range(rng.randrange(1, 5))] for _ in range(m)
        ]
        group.rewards_by_name = {"a": list(group.rewards or []), "b": [rng.random() for _ in range(m)]}
        groups.append(group)
    return groups


def without_ids(groups: list[Group]) -> list[Group]:
    """A server gave no ids for some groups, and for one completion of another; some texts are equal."""
    for group in groups[::2]:
        group.completion_token_ids = [[] for _ in group.completions]
        group.completions[1] = group.completions[0]
    groups[1].completion_token_ids[3] = []
    return groups


def uneven(groups: list[Group]) -> list[Group]:
    return [*groups, group_of([1.0, 2.0], prompt_id="uneven")]


def with_rewards_of(groups: list[Group], rewards: Sequence[float | None] | None) -> list[Group]:
    return [*groups, dataclasses.replace(groups[0], prompt_id="another", rewards=rewards)]


def continuous(rng: random.Random) -> float:
    return rng.gauss(0, 1)


def success(rng: random.Random) -> float:
    return float(rng.random() < 0.3)


def score_or_null(rng: random.Random) -> float | None:
    return None if rng.random() < 0.2 else float(rng.randrange(1, 6))


FILES: dict[str, Callable[[], list[Group]]] = {
    "without ties": lambda: made(continuous),
    "successes": lambda: made(success),
    "scores, some null": lambda: made(score_or_null),
    "some null": lambda: made(lambda rng: None if rng.random() < 0.1 else rng.random()),
    "infinite": lambda: made(lambda rng: math.inf if rng.random() < 0.1 else rng.random()),
    "one prompt": lambda: made(continuous, 1),
    "one completion": lambda: made(continuous, 5, 1),
    "without ids": lambda: without_ids(made(success)),
    "uneven": lambda: uneven(made(success)),
    "unscored": lambda: with_rewards_of(made(success), None),
    "fewer rewards": lambda: with_rewards_of(made(success), [1.0]),
    "all null": lambda: made(lambda rng: None),
    "an id twice": lambda: made(success) + made(success, 1),
    "no groups": lambda: [],
}
NO_RECTANGLE = {"uneven", "unscored", "fewer rewards", "no groups"}
REFUSED = {*NO_RECTANGLE, "all null", "an id twice"}


def curve_or_error(read: Callable, path: Path) -> tuple[object, str]:
    """The JSON of its curve, or what is said of it."""
    try:
        groups, lacking = read(path)
        return lacking, json.dumps(best_of_n_report(groups).to_dict())
    except NonpareilError as error:
        return type(error), str(error)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("sealed", [True, False], ids=["ours", "by another program"])
def test_the_curve_is_that_of_the_groups_to_the_last_digit(tmp_path, kind, sealed):
    path = write_shard(tmp_path / "groups.parquet", FILES[kind]())
    if not sealed:
        rewards = pa.list_(pa.float32())  # of an earlier version
        table = read_table(path)
        if "rewards" in table.column_names:
            at = table.column_names.index("rewards")
            table = table.set_column(at, "rewards", table["rewards"].cast(rewards))
        pq.write_table(table.replace_schema_metadata(None), path)
    ours = curve_or_error(read_numbers, path)
    assert ours == curve_or_error(read_available, path)
    assert issubclass(ours[0], NonpareilError) if kind in REFUSED else ours[0] == ""
    if kind != "an id twice":
        is_rectangle = isinstance(read_numbers(path)[0], GroupNumbers)
        assert is_rectangle == (kind not in NO_RECTANGLE)


def test_a_file_with_fewer_texts_than_ids_is_read_as_groups_are(tmp_path):
    """Which its columns of numbers alone would not show."""
    groups = made(success)
    groups[3].completions = groups[3].completions[:-1]
    path = write_shard(tmp_path / "groups.parquet", groups)
    ours = curve_or_error(read_numbers, path)
    assert ours == curve_or_error(read_available, path)
    assert "equally many completions" in ours[1]


def test_ids_of_another_type_and_lines_of_json(tmp_path):
    path = write_shard(tmp_path / "groups.parquet", made(success))
    table = read_table(path)
    at = table.column_names.index("completion_token_ids")
    for kind in (pa.int64(), pa.float64()):
        other = table.set_column(at, "completion_token_ids", table[at].cast(pa.list_(pa.list_(kind))))
        write_table(tmp_path / "other.parquet", other)
        assert best_of_n_report(read_numbers(tmp_path / "other.parquet")[0]) == best_of_n_report(
            read_numbers(path)[0]
        )
    lines = tmp_path / "groups.jsonl"
    row = {"prompt": "p", "responses": ["a", "b", "b"], "rewards": [1, None, 2.5]}
    lines.write_text(json.dumps(row), encoding="utf-8")
    assert read_numbers(lines) == read_available(lines)


def test_a_run_that_is_not_finished_is_read_as_far_as_it_is(rollouts, tmp_path):
    folder = rollouts.output_dir
    for read, place in ((read_numbers, "numbers"), (read_available, "groups")):
        write_curve(best_of_n_report(read(folder)[0]), tmp_path / place)
    for file in ("curve.json", "curve.png"):
        assert (tmp_path / "numbers" / file).read_bytes() == (tmp_path / "groups" / file).read_bytes()
    shards(folder)[2].unlink()
    manifest = {**read_manifest(folder), "complete": False}
    write_manifest(folder, manifest)
    part = curve_or_error(read_numbers, folder)
    assert part == curve_or_error(read_available, folder)
    assert part[0].startswith("3 of 4 shards are there; 1 are not drawn (the first is shard-00002.parquet)")


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_folder_that_is_not_its_run_is_refused_by_name(rollouts, damage):
    damage(rollouts.output_dir)
    with pytest.raises(NonpareilError, match=DAMAGE[damage]):
        read_numbers(rollouts.output_dir)


def test_a_flipped_bit_is_found_in_a_column_that_is_not_read(rollouts):
    shard = shards(rollouts.output_dir)[1]
    content = bytearray(shard.read_bytes())
    with pq.ParquetFile(shard) as file:
        names = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    chunk = next(one for one in names if one.path_in_schema.startswith("logprobs"))
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(NonpareilError, match=r"shard-00001.parquet is corrupt \(its checksum does not hold"):
        read_numbers(rollouts.output_dir)
