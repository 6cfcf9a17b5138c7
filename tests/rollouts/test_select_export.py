import json
import weakref
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts import best, export, row_files, worst
from nonpareil.rollouts.export import (
    ALL_CUT,
    ALL_EQUAL,
    BELOW_BAR,
    BELOW_MARGIN,
    NO_REWARD,
    SAME_TEXT,
    SINGLE,
    UNREAD,
)
from nonpareil.rollouts.reading import stored_groups
from tests.rollouts.conftest import combined, count_of_good, group_of, never, roll

CHAT = [{"role": "user", "content": "the film"}]


def rows_of(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Selection


def test_the_highest_and_the_lowest_and_never_a_null():
    group = group_of([None, 1.0, 3.0, -2.0, None])
    assert (best(group), worst(group)) == (2, 3)
    assert (best(group, 2), worst(group, 2)) == (1, 1)
    assert best(group, 1) is None
    assert worst(group_of([None, None])) is None


def test_ties_are_drawn_evenly_and_repeatably():
    def pick(i: int) -> int | None:
        return best(group_of([0.0, 1.0, 1.0, 1.0], prompt_id=f"p-{i}"), seed=5)

    picks = Counter(pick(i) for i in range(600))
    assert set(picks) == {1, 2, 3}
    assert min(picks.values()) > 150  # 200 expected, standard deviation 12
    assert [pick(i) for i in range(20)] == [pick(i) for i in range(20)]
    other = [best(group_of([1.0, 1.0, 1.0, 1.0], prompt_id=f"p-{i}"), seed=6) for i in range(20)]
    assert other != [best(group_of([1.0, 1.0, 1.0, 1.0], prompt_id=f"p-{i}"), seed=5) for i in range(20)]


def test_cut_completions_can_be_left_out():
    group = group_of([3.0, 1.0, 2.0], finish_reasons=["length", "stop", "stop"])
    assert best(group) == 0
    assert best(group, truncated="exclude") == 2
    assert best(group_of([1.0], finish_reasons=["length"]), truncated="exclude") is None


def test_selection_refuses_what_it_cannot_do():
    with pytest.raises(DataError, match="'p-0' has no rewards; score the groups first"):
        best(group_of(None, ["a", "b"]))
    for n in (0, 3):
        with pytest.raises(ConfigError, match=rf"n={n} must be between 1 and the 2"):
            best(group_of([1.0, 2.0]), n)
    with pytest.raises(ConfigError, match="truncated='drop' must be one of allow, exclude"):
        best(group_of([1.0]), truncated="drop")  # type: ignore[arg-type]


# --- Export

GROUP = group_of([1.0, 3.0, 2.0], ["a", "b", "c"], answer=4)
EXPECTED = {
    "preference": [
        {
            **{"prompt": "the film was", "chosen": "b", "rejected": "a"},
            **{"score_chosen": 3.0, "score_rejected": 1.0, "answer": 4},
        }
    ],
    "sft": [{"prompt": "the film was", "completion": "b", "score": 3.0, "answer": 4}],
    "unpaired": [
        {"prompt": "the film was", "completion": "b", "label": True, "score": 3.0, "answer": 4},
        {"prompt": "the film was", "completion": "a", "label": False, "score": 1.0, "answer": 4},
    ],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("format", EXPECTED)
def test_trl_s_columns_exactly(tmp_path, format, suffix):
    report = export([GROUP], tmp_path / f"a{suffix}", format)
    assert rows_of(report.path) == EXPECTED[format]
    assert [list(row) for row in rows_of(report.path)] == [list(row) for row in EXPECTED[format]]
    assert (report.groups, report.rows, report.skipped) == (1, len(EXPECTED[format]), {})


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations_stay_messages(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    export([group_of([1.0, 3.0], ["a", "b"], prompt=CHAT)], path, "preference")
    loader = {".jsonl": "json", ".parquet": "parquet"}[suffix]
    [row] = datasets.load_dataset(
        loader, data_files=str(path), split="train", cache_dir=str(tmp_path / "c")
    ).to_list()
    assert row == {
        "prompt": CHAT,
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "a"}],
        "score_chosen": 3.0,
        "score_rejected": 1.0,
    }


def test_words_the_assistant_began_with_join_its_completion(tmp_path):
    prefilled = [*CHAT, {"role": "assistant", "content": "It was"}]
    report = export([group_of([1.0, 3.0], [" bad", " good"], prompt=prefilled)], tmp_path / "a.jsonl", "sft")
    assert rows_of(report.path) == [
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "It was good"}], "score": 3.0}
    ]


def test_pairs_are_never_the_same_and_every_skip_is_counted(tmp_path):
    groups = [
        group_of([1.0, 1.0, 1.0], ["a", "b", "c"]),
        group_of([1.0, 2.0], ["same", "same"]),
        group_of([None, None], ["a", "b"]),
        group_of([None, 2.0], ["a", "b"]),
        group_of([1.0, 2.0], ["a", "b"], finish_reasons=["length", "length"]),
        GROUP,
    ]
    skipped = {ALL_EQUAL: 1, SAME_TEXT: 1, NO_REWARD: 1, SINGLE: 1, ALL_CUT: 1}
    for format in ("preference", "unpaired"):
        report = export(groups, tmp_path / f"{format}.jsonl", format)  # type: ignore[arg-type]
        assert report.skipped == skipped
        assert rows_of(report.path) == EXPECTED[format]
    sft = export(groups, tmp_path / "sft.jsonl", "sft")
    assert (sft.rows, sft.skipped) == (2, {ALL_EQUAL: 1, NO_REWARD: 1, SINGLE: 1, ALL_CUT: 1})


@pytest.mark.parametrize("format", EXPECTED)
def test_a_group_without_a_winner_gives_no_row_of_any_format(tmp_path, format):
    all_wrong, all_right = group_of([0.0] * 4), group_of([1.0] * 4)
    report = export([all_wrong, all_right, GROUP], tmp_path / "a.jsonl", format)
    assert (report.groups, report.skipped) == (3, {ALL_EQUAL: 2})
    assert rows_of(report.path) == EXPECTED[format]


def test_min_reward_says_what_is_right_whatever_the_others_are(tmp_path):
    all_wrong, all_right = group_of([0.0] * 3, ["w"] * 3), group_of([1.0] * 3, ["r"] * 3)
    mixed = group_of([0.0, 1.0, 0.0], ["x", "y", "z"])

    def labels(format, **bars):
        report = export(
            [all_wrong, all_right, mixed],
            tmp_path / "a.jsonl",
            format,
            overwrite=True,
            min_reward=1.0,
            **bars,
        )
        rows = rows_of(report.path)
        return [(r.get("completion", r.get("chosen")), r.get("label")) for r in rows], report.skipped

    assert labels("sft") == ([("r", None), ("y", None)], {BELOW_BAR: 1})
    assert labels("sft", n=1) == ([("r", None)], {BELOW_BAR: 2})
    written, skipped = labels("unpaired")
    assert [written[0], written[1], written[2][1]] == [("r", True), ("y", True), False]
    assert skipped == {BELOW_BAR: 1}
    assert labels("preference") == ([("y", None)], {BELOW_BAR: 1, ALL_EQUAL: 1})


def test_a_pair_is_as_far_apart_as_min_margin_asks(tmp_path):
    near, far = group_of([1.0, 1.2], ["a", "b"]), group_of([1.0, 1.5], ["c", "d"])
    for format in ("preference", "unpaired"):
        report = export([near, far], tmp_path / f"{format}.jsonl", format, min_margin=0.5)
        assert report.skipped == {BELOW_MARGIN: 1}
        first = rows_of(report.path)[0]
        assert first.get("chosen", first.get("completion")) == "d"


def test_a_cut_completion_is_not_written_and_still_counts_as_beaten(tmp_path):
    reasons = ["length", "stop", "stop"]
    beaten = group_of([0.0, 1.0, 1.0], ["a", "b", "b"], finish_reasons=reasons)
    not_beaten = group_of([2.0, 1.0, 1.0], ["a", "b", "b"], finish_reasons=reasons)
    report = export([beaten, not_beaten], tmp_path / "a.jsonl", "sft")
    assert [row["completion"] for row in rows_of(report.path)] == ["b"]
    assert report.skipped == {ALL_EQUAL: 1}
    allowed = export([beaten, not_beaten], tmp_path / "b.jsonl", "sft", truncated="allow")
    assert [row["completion"] for row in rows_of(allowed.path)] == ["b", "a"]


def test_all_tie_groups_give_no_preferences_at_all(tmp_path):
    ties = [group_of([1.0] * 4, prompt_id=f"p-{i}") for i in range(30)]
    with pytest.raises(
        DataError, match="none of the 30 groups gives a row of preference: 30 with all rewards equal"
    ):
        export(ties, tmp_path / "a.jsonl", "preference")
    assert not (tmp_path / "a.jsonl").exists()


def test_several_n_out_of_one_pass(tmp_path):
    group = group_of([1.0, 2.0, 0.0, 5.0], ["a", "b", "c", "d"])
    chosen = {}
    for n in (2, 3, 4):
        [row] = rows_of(export([group], tmp_path / f"{n}.jsonl", "preference", n=n).path)
        chosen[n] = row["chosen"] + row["rejected"]
    assert chosen == {2: "ba", 3: "bc", 4: "dc"}


def test_cut_completions_are_not_exported_where_excluded(tmp_path):
    group = group_of([1.0, 3.0, 2.0], ["a", "b", "c"], finish_reasons=["stop", "length", "stop"])
    [row] = rows_of(export([group], tmp_path / "a.jsonl", "preference").path)
    assert (row["chosen"], row["rejected"]) == ("c", "a")
    [row] = rows_of(export([group], tmp_path / "b.jsonl", "preference", truncated="allow").path)
    assert (row["chosen"], row["rejected"]) == ("b", "a")


def test_a_dataset_column_named_like_a_field_keeps_apart(tmp_path):
    group = group_of([1.0, 3.0], ["a", "b"], chosen="theirs", label=1)
    [row] = rows_of(export([group], tmp_path / "a.jsonl", "preference").path)
    assert row == {
        "prompt": "the film was",
        "chosen": "b",
        "rejected": "a",
        "score_chosen": 3.0,
        "score_rejected": 1.0,
        "columns/chosen": "theirs",
        "label": 1,
    }


def test_what_trl_would_read_in_place_of_a_field_keeps_apart(tmp_path):
    """As of the columns that HuggingFaceH4/ultrafeedback_binarized and its like bring along."""
    theirs = {"chosen": "x", "rejected": "y", "messages": CHAT, "text": "z", "input_ids": [1], "answer": 4}
    group = group_of([1.0, 3.0], ["a", "b"], **theirs)
    taken = {
        "preference": {"messages"},
        "sft": {*theirs} - {"answer"},
        "unpaired": {"messages", "chosen", "rejected"},
    }
    for format, names in taken.items():
        names |= {"chosen", "rejected"}
        row = rows_of(export([group], tmp_path / f"{format}.jsonl", format).path)[0]
        further = {f"columns/{name}" if name in names else name: value for name, value in theirs.items()}
        assert {name: row[name] for name in further} == further
        assert list(row) == [*[*EXPECTED[format][0]][:-1], *further]


BAD_EXPORTS = {
    "format": ({"format": "dpo"}, "format='dpo' must be one of preference, sft, unpaired"),
    "suffix": ({"path": "a.csv"}, "must end in .jsonl or .parquet"),
    "n for pairs": ({"n": 1}, "n=1 is too small for preference: .* at least 2$"),
    "n for sft": (
        {"n": 1, "format": "sft"},
        "n=1 is too small for sft: nothing wins alone; .* 1 with min_reward",
    ),
    "margin of sft": ({"min_margin": 0.5, "format": "sft"}, "min_margin=0.5 is of pairs"),
    "margin": ({"min_margin": 0.0}, "min_margin=0.0 must be above 0"),
    "reward": ({"min_reward": float("nan")}, "min_reward=nan must be"),
    "n above m": ({"n": 4}, "n=4 must be between 1 and the 3"),
    "exists": ({"path": "there.jsonl"}, r"output='.*there.jsonl' exists; give another path"),
}


@pytest.mark.parametrize("case", BAD_EXPORTS)
def test_bad_exports(tmp_path, case):
    changes, message = BAD_EXPORTS[case]
    (tmp_path / "there.jsonl").write_text("x")
    settings = {"path": "a.jsonl", "format": "preference", **changes}
    with pytest.raises(ConfigError, match=message):
        export([GROUP], tmp_path / settings.pop("path"), **settings)
    assert (tmp_path / "there.jsonl").read_text() == "x"


def test_overwriting_an_export(tmp_path):
    (tmp_path / "a.jsonl").write_text("x")
    report = export([GROUP], tmp_path / "a.jsonl", "sft", overwrite=True)
    assert rows_of(report.path) == EXPECTED["sft"]


# --- Streaming


def in_one_go(path, groups, format):
    """The file as it is when all rows are held: one list, one table."""
    export(list(groups), path.with_suffix(".jsonl"), format)
    rows = rows_of(path.with_suffix(".jsonl"))
    names = list(dict.fromkeys(name for row in rows for name in row))
    pq.write_table(pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}), path)
    return path.read_bytes()


def many(count, **columns):
    """Groups with a column that is null at first and one that not all have; `columns` of the second half alone."""
    for i in range(count):
        further = {"answer": None if i < 1100 else i, **({"note": [i, None]} if i % 3 else {})}
        further |= columns if i > count // 2 else {}
        yield group_of([1.0, float(i % 5), 2.0], [f"a{i}", f"b{i}", "c"], prompt_id=f"p-{i}", **further)


@pytest.mark.parametrize("format", EXPECTED)
def test_rows_written_as_they_come_are_byte_for_byte_those_of_one_table(tmp_path, format):
    for columns in ({}, {"answer": 0.5}):  # whole and broken numbers: only all values together have a type
        expected = in_one_go(tmp_path / "all.parquet", many(2300, **columns), format)
        path = export(many(2300, **columns), tmp_path / "a.parquet", format, overwrite=True).path
        assert path.read_bytes() == expected
        (tmp_path / "all.jsonl").unlink()


def test_a_large_parquet_file_has_row_groups_and_the_same_rows(tmp_path, monkeypatch):
    in_one_go(tmp_path / "all.parquet", many(2300), "preference")
    monkeypatch.setattr(row_files, "ROW_GROUP_BYTES", 50_000)
    path = export(many(2300), tmp_path / "a.parquet", "preference").path
    assert pq.ParquetFile(path).num_row_groups > 2
    assert pq.read_table(path).equals(pq.read_table(tmp_path / "all.parquet"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_one_group_at_a_time_is_alive_and_an_error_leaves_what_was_there(tmp_path, suffix):
    alive = weakref.WeakSet()

    class Watched:
        """Groups that can be gone through again, as those of a folder."""

        def __iter__(self):
            for i in range(1300):
                group = group_of([1.0, 2.0], prompt_id=f"p-{i}")
                group.completions = Texts(group.completions)
                alive.add(group.completions)
                assert len(alive) <= 3
                yield group
                del group
            if broken:
                raise DataError("the last shard is corrupt")

    path, broken = tmp_path / f"a{suffix}", False
    assert export(Watched(), path, "preference").rows == 1300
    before, broken = path.read_bytes(), True
    with pytest.raises(DataError, match="the last shard"):
        export(Watched(), path, "preference", overwrite=True)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


class Texts(list):
    """A list that can be watched."""

    __hash__ = object.__hash__


def test_a_folder_is_exported_without_its_tokens_as_its_groups_are(rollouts, tmp_path):
    groups = rollouts.groups()
    stored = list(stored_groups(rollouts.output_dir, without=UNREAD))
    assert [group.logprobs for group in stored] == [[]] * 8
    for suffix in (".jsonl", ".parquet"):
        whole = export(groups, tmp_path / f"whole{suffix}", "sft").path
        streamed = export(stored_groups(rollouts.output_dir, UNREAD), tmp_path / f"a{suffix}", "sft").path
        assert streamed.read_bytes() == whole.read_bytes()


def test_a_folder_that_is_scored_anew_meanwhile_is_not_mixed(rollouts):
    groups = iter(stored_groups(rollouts.output_dir))
    next(groups)
    roll(rollouts.output_dir, engine=never, reward=combined(count_of_good))
    with pytest.raises(DataError, match=r"shard-00001.parquet was written anew while the groups were read"):
        list(groups)
