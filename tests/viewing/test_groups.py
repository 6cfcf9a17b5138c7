"""Tables of groups against numbers worked by hand, and a folder that changes under them."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, DataError
from tests.viewing.made import group, hostile, two_shards, write

pytest.importorskip("duckdb", reason="the pages need the extra view")
datastructures = pytest.importorskip("starlette.datastructures", reason="the pages need the extra view")

from nonpareil.viewing.database import connect  # noqa: E402
from nonpareil.viewing.group import contrast, ranked, read_group  # noqa: E402
from nonpareil.viewing.index import GroupIndex, places_of  # noqa: E402
from nonpareil.viewing.overview import Worths, numbers_of, totals_of  # noqa: E402
from nonpareil.viewing.query import groups_of, neighbours, read_query  # noqa: E402
from nonpareil.viewing.shards import check_place  # noqa: E402
from nonpareil.viewing.texts import difference  # noqa: E402


def index_of(place: Path) -> GroupIndex:
    index = GroupIndex(connect(places_of([place])), place, "g")
    index.refresh()
    return index


def asked(index: GroupIndex, address: str) -> list[str]:
    query = read_query(datastructures.QueryParams(address), index)
    return [row["prompt_id"] for row in groups_of(index, query).rows]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> GroupIndex:
    return index_of(two_shards(tmp_path_factory.mktemp("groups")))


def test_every_number_of_a_group(index):
    found = groups_of(index, read_query(datastructures.QueryParams(""), index))
    numbers = {key: [row[key] for row in found.rows] for key in found.fields}
    assert numbers["gain"] == [1.5, 0, 1, 3]
    assert numbers["best"] == [3, 2, 3, 4]
    assert numbers["mean"] == [1.5, 2, 2, 1]
    assert numbers["spread"] == pytest.approx([(5 / 3) ** 0.5, 0, (4 / 3) ** 0.5, 2])
    assert numbers["tied"] == [1, 4, 2, 1]
    assert numbers["nulls"] == [0, 0, 2, 0]
    # Of the pairs that both tell apart: all; none is told apart; all, those of a (1, 2) with a (3, 1); none.
    assert numbers["disagreement"] == [1, None, pytest.approx(1), 0]
    assert numbers["length"] == [3.5, 3.5, 4.5, 3.5]
    assert numbers["longest"] == [5, 5, 7, 5]
    assert numbers["cut"] == [1, 0, 0, 4]
    assert numbers["m"] == numbers["different"] == [4, 4, 6, 4]
    assert numbers["column.level"] == [5, 3, 9, None]
    assert numbers["column.extra"] == ['{"a": 1}', '{"b": [2]}', None, None]


@pytest.mark.parametrize(
    ("address", "ids"),
    [
        ("", ["p-0", "p-1", "p-2", "p-3"]),
        ("sort=gain", ["p-3", "p-0", "p-2", "p-1"]),
        ("sort=gain&dir=up", ["p-1", "p-2", "p-0", "p-3"]),
        ("sort=column.level&dir=up", ["p-1", "p-0", "p-2", "p-3"]),  # what is not known is last either way
        ("sort=column.level", ["p-2", "p-0", "p-1", "p-3"]),
        ("sort=best&reward=second", ["p-0", "p-1", "p-2", "p-3"]),  # ties stay as drawn
        ("q=NUMBER 2", ["p-2"]),
        ("q=p-3", ["p-3"]),
        ("q=answer 5", []),
        ("q=Answer 5&texts=1", ["p-2"]),  # the only group with a sixth completion
        ("field=gain&op=atleast&value=1.5", ["p-0", "p-3"]),
        ("field=gain&op=atleast&value=1&field=nulls&op=is&value=0", ["p-0", "p-3"]),
        ("field=column.topic&op=has&value=FILM", ["p-0", "p-2"]),
        ("field=column.topic&op=is&value=Films", ["p-2"]),
        ("field=column.topic&op=not&value=Films", ["p-0", "p-1", "p-3"]),
        ("field=column.level&op=null&value=", ["p-3"]),
        ("field=disagreement&op=known&value=&sort=disagreement&dir=up", ["p-3", "p-0", "p-2"]),
    ],
)
def test_search_filter_and_sort(index, address, ids):
    assert asked(index, address) == ids


def test_an_address_says_what_was_asked(index):
    address = "q=a%26b&texts=1&field=gain&op=atleast&value=1&sort=best&dir=up"
    address += "&reward=second&first=second&second=first&page=3"
    query = read_query(datastructures.QueryParams(address), index)
    assert read_query(datastructures.QueryParams(query.address()), index) == query


def test_neighbours_follow_the_order(index):
    query = read_query(datastructures.QueryParams("sort=gain"), index)
    first, second = ("shard-00001.parquet", 1), ("shard-00000.parquet", 0)
    around = neighbours(index, query, *first)
    assert around == {"place": 1, "count": 4, "before": None, "after": second}
    assert neighbours(index, query, *second)["before"] == first
    query = read_query(datastructures.QueryParams("q=number 2"), index)
    assert neighbours(index, query, *first)["place"] is None


def test_a_folder_that_grows_is_read_again(tmp_path):
    folder = tmp_path / "g[r]ow*"
    write(folder, 0, [group(0, [1, 2])])
    index = index_of(folder)
    version = index.version
    index.refresh()
    assert index.version == version  # nothing new, nothing read
    write(folder, 1, [group(1, [1.0, 2.0], score=1.5), group(2, [3, 4], score="high")][:1])
    write(folder, 2, [group(2, [3, 4], score="high")])  # another type of the same column
    index.refresh()
    assert index.version > version
    assert asked(index, "sort=column.score") == ["p-2", "p-1", "p-0"]
    write(folder, 0, [group(0, [1, 9], others={"late": [5, 6]})])  # scored anew: a column more
    index.refresh()
    assert asked(index, "sort=best") == ["p-0", "p-2", "p-1"]
    assert asked(index, "reward=late&field=best&op=is&value=6") == ["p-0"]
    shutil.rmtree(folder)
    index.refresh()
    assert asked(index, "") == []


def test_a_damaged_file_is_named_and_the_others_shown(tmp_path):
    two_shards(tmp_path)
    path = tmp_path / "data" / "shard-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    (tmp_path / "data" / "shard-00002.parquet").write_bytes(b"no Parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data" / "shard-00003.parquet")
    index = index_of(tmp_path)
    assert asked(index, "") == ["p-0", "p-1"]
    reasons = [index.state.problems[f"shard-0000{n}.parquet"] for n in (1, 2, 3)]
    assert "its checksum does not hold" in reasons[0]
    assert "cannot be read" in reasons[1]
    assert "it has no column 'prompt_id' (it has: text)" in reasons[2]
    two_shards(tmp_path)  # mended, and
    (tmp_path / "data" / "shard-00002.parquet").unlink()
    index.refresh()
    assert asked(index, "") == ["p-0", "p-1", "p-2", "p-3"]
    assert [*index.state.problems] == ["shard-00003.parquet"]


def test_files_by_others_are_read_as_far_as_they_say(tmp_path):
    table = {
        "prompt_id": ["a", "b"],
        "prompt": [[{"content": "hi", "role": "user"}], [{"content": None, "role": "user"}]],
        "completions": [["x", "y"], ["z", "z"]],
        "rewards": [[1.0, float("nan")], [float("inf"), 2.0]],
        "Rewards": ["a column", "of a dataset"],
    }
    pq.write_table(pa.table(table), tmp_path / "groups.parquet")
    index = index_of(tmp_path / "groups.parquet")
    found = groups_of(index, read_query(datastructures.QueryParams(""), index))
    assert [row["prompt"] for row in found.rows] == ["user: hi", "user: "]
    assert [
        (row["best"], row["nulls"], row["length"], row["cut"], row["different"]) for row in found.rows
    ] == [
        (1.0, 1, None, None, 2),
        (2.0, 1, None, None, 1),
    ]
    assert index.unlisted == {"Rewards"}
    best, other = ranked(read_group(index, "groups.parquet", 1), "")
    assert (best.reward, best.place, best.num_tokens, best.tokens, other.reward) == (2.0, 1, None, [], None)


def test_the_database_reads_nothing_else(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    outside = tmp_path / "outside.csv"
    outside.write_text("a\n1\n")
    index = index_of(two_shards(tmp_path / "inside"))
    for sql in (
        f"SELECT * FROM read_csv('{outside}')",
        f"COPY (SELECT 1) TO '{tmp_path / 'x'}'",
        "INSTALL httpfs",
    ):
        with pytest.raises(duckdb.Error):
            index.cursor().execute(sql)


def test_best_of_n_is_that_of_the_groups_of_one_size(index):
    numbers, left_out = numbers_of(index, "")
    assert numbers.prompt_ids == ["p-0", "p-1", "p-3"]
    assert numbers.rewards.tolist() == [[0, 1, 2, 3], [2, 2, 2, 2], [0, 0, 0, 4]]
    assert left_out.startswith("3 of 4 groups")
    worths = Worths(index)
    worth, making = worths.ask("", patience=120)
    assert not making
    worths.renew()
    assert worths.made == 1  # nothing is new
    # Means over three prompts: of one draw (1.5 + 2 + 1) / 3, of the best of four (3 + 2 + 4) / 3.
    assert [worth.curve.points[n].reward.estimate for n in (0, 3)] == pytest.approx([1.5, 3.0])


def test_groups_without_rewards_are_counted_all_the_same(tmp_path):
    write(tmp_path, 0, [group(0, None, texts=["a", "b"]), group(1, None, texts=["c", "d", "e"])])
    index = index_of(tmp_path)
    totals = totals_of(index, None)
    assert (totals.groups, totals.completions, totals.scored, totals.tokens) == (2, 5, 0, 14)
    assert [each.rank for each in ranked(read_group(index, "shard-00000.parquet", 1), None)] == [None] * 3


def test_the_difference_of_two_texts_gives_both_back():
    sides = difference("a good film, truly", "a bad film, truly!")
    assert ["".join(part.text for part in side) for side in sides] == [
        "a good film, truly",
        "a bad film, truly!",
    ]
    assert [[p.text for p in side if p.kind == "own"] for side in sides] == [["good"], ["bad", "!"]]
    assert difference("word " * 3000, "word") is None


def test_equal_rewards_have_no_winner(index):
    completions = ranked(read_group(index, "shard-00000.parquet", 1), "")
    assert {each.rank for each in completions} == {1}
    assert contrast(completions) is None
    assert contrast(completions, 0, 3).loser.place == 3
    with pytest.raises(DataError, match="no completion 4"):
        contrast(completions, 4)


def test_a_place_without_groups_is_refused(tmp_path):
    (tmp_path / "text.jsonl").write_text("{}")
    for path, says in (
        ("nothing", "nothing is there"),
        (".", "holds no groups"),
        ("text.jsonl", "no Parquet file"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_place(tmp_path / path)
    foreign = tmp_path / b"\xff".decode(errors="surrogateescape")
    foreign.mkdir()
    with pytest.raises(ConfigError, match="not UTF-8; rename the folder"):
        check_place(foreign)
    (tmp_path / "manifest.json").write_text(json.dumps({"draw": 1}))
    with pytest.raises(ConfigError, match=r"groups: .*no manifest of rollouts"):
        check_place(tmp_path)


def test_a_bundle_holds_the_groups_that_were_asked_for(tmp_path):
    pytest.importorskip("fastapi")
    from nonpareil.viewing.bundle import write_bundle
    from nonpareil.viewing.site import Site

    site = Site.of([("mine", two_shards(tmp_path / "groups"))])
    assert write_bundle(site, tmp_path / "out", "sort=gain&field=gain&op=atleast&value=1", 2) == 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "index.html",
        "groups.html",
        "group-00001.html",
        "group-00002.html",
        "view.css",
        "view.js",
    }
    first = (tmp_path / "out" / "group-00001.html").read_text()
    assert "Group p-3" in first
    assert 'rel="next" href="group-00002.html"' in first
    assert 'http-equiv="Content-Security-Policy"' in first
    assert "best of N" in (tmp_path / "out" / "index.html").read_text()
    for path in (tmp_path / "out").glob("*.html"):
        assert 'href="/' not in path.read_text()
    with pytest.raises(DataError, match="a bundle would be empty"):
        write_bundle(site, tmp_path / "none", "q=nothing+like+it", 2)
    with pytest.raises(DataError, match="no field is called"):
        write_bundle(Site.of([("x", hostile(tmp_path / "h"))]), tmp_path / "none", "sort=x", 2)
