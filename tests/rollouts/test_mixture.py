"""Mixtures: which prompts are taken, in which order, and what is refused."""

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path

import datasets
import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.in_memory import InMemory
from nonpareil.options.shared import STREAMS, PromptOptions
from nonpareil.options.unread import absent_splits
from nonpareil.records import SOURCE, prompt_identity
from nonpareil.rollouts import load_prompts, read_groups, tokenize_prompts
from nonpareil.rollouts.mixture import mixture_of
from tests.rollouts.conftest import make_tokenizer, roll


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def two(tmp_path):
    """30 rows of a.jsonl and 10 of b.jsonl."""
    a = [{"prompt": f"a{i}", "answer": str(i)} for i in range(30)]
    b = [{"prompt": f"b{i}", "answer": str(i)} for i in range(10)]
    return write(tmp_path / "a.jsonl", *a), write(tmp_path / "b.jsonl", *b)


def texts(rows):
    return [row["prompt"] for row in rows]


def test_every_beginning_has_the_fractions_and_nothing_is_taken_twice(two):
    a, b = two
    mixed = [{"path": a, "fraction": 3}, {"path": b, "fraction": 1}]  # shares of .75 and .25
    whole = load_prompts(mixed)
    assert Counter(row[SOURCE] for row in whole) == {"a.jsonl": 30, "b.jsonl": 10}
    assert len(set(texts(whole))) == 40
    for count in range(1, 41):
        own = Counter(row[SOURCE] for row in whole[:count])
        assert abs(own["a.jsonl"] - 0.75 * count) < 1
    # The first of each, in their order; a limit is a beginning, so that a folder of groups can grow.
    assert texts(load_prompts(mixed, limit=4)) == ["a0", "a1", "b0", "a2"] == texts(whole[:4])
    assert [row.position for row in whole] == list(range(40))


def test_the_mixture_ends_where_a_dataset_has_no_more(two, capsys):
    a, b = two
    rows = load_prompts([{"path": a, "fraction": 0.5}, {"path": b, "fraction": 0.5}])
    assert Counter(row[SOURCE] for row in rows)["b.jsonl"] == 10
    assert len(rows) in (20, 21)
    said = capsys.readouterr().err
    assert "b.jsonl 10 of 10; b.jsonl has no more, and no prompt is taken twice" in said
    # Without fractions all are taken, spread over the whole.
    rows = load_prompts([a, b])
    assert sorted(texts(rows)) == sorted([f"a{i}" for i in range(30)] + [f"b{i}" for i in range(10)])
    assert Counter(text[0] for text in texts(rows)[:20]) == {"a": 15, "b": 5}


def test_datasets_are_read_as_load_dataset_and_trl_read_them(two, tmp_path):
    a, b = two
    datasets.Dataset.from_list([{"prompt": f"d{i}", "answer": "x"} for i in range(3)]).save_to_disk(
        tmp_path / "saved"
    )
    rows = load_prompts(
        [
            {"path": "json", "data_files": a, "split": "train[:2]"},
            {"path": "json", "data_files": a, "split": "train[2:4]"},
            {"path": b, "columns": ["prompt"]},
            {"path": str(tmp_path / "saved")},
            {"path": InMemory("rows", [{"prompt": "m0"}, "m1"])},
        ]
    )
    assert Counter(row[SOURCE] for row in rows) == {
        "a.jsonl[train[:2]]": 2,
        "a.jsonl[train[2:4]]": 2,
        "b.jsonl": 10,
        "saved": 3,
        "rows": 2,
    }
    with pytest.raises(ConfigError, match=r"split='test' is not read: '.*saved' is one saved dataset"):
        load_prompts([{"path": str(tmp_path / "saved"), "split": "test"}])
    answers = {row["prompt"]: row["answer"] for row in rows}
    assert (answers["a1"], answers["b0"], answers["m1"]) == ("1", None, None)
    assert all(set(row) == {"prompt", "answer", SOURCE} for row in rows)


def test_a_part_is_held_out_of_the_whole_mixture(two):
    parts = [load_prompts(list(two), test_split_size=0.25, held_out=held_out) for held_out in (True, False)]
    assert list(map(len, parts)) == [10, 30]
    assert not set(texts(parts[0])) & set(texts(parts[1]))
    assert {SOURCE, "prompt", "answer"} == set(parts[0][0])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ([], ConfigError, r"^source=\[\] must be a list of datasets"),
        ([3], ConfigError, r"^source\[0\]=3 must be a path, or keys and values"),
        ([{"fraction": 1}], ConfigError, r"^source\[0\]: path is missing"),
        ([{"path": "A", "weight": 1}], ConfigError, "unknown key 'weight'; did you mean fraction"),
        ([{"path": "A", "colums": ["x"]}], ConfigError, "unknown key 'colums'; did you mean columns"),
        ([{"path": "A", "fraction": 0}], ConfigError, r"^source\[0\].fraction=0.0 must be above 0"),
        ([{"path": "A", "fraction": -1}], ConfigError, r"must be above 0"),
        ([{"path": "A", "fraction": float("nan")}], ConfigError, r"must be a finite number above 0"),
        ([{"path": "A", "fraction": 1}, "B"], ConfigError, r"^source\[1\] has no fraction, and others have"),
        (["A", {"path": "A", "fraction": None}], ConfigError, r"^source\[1\] is source\[0\] again"),
        ([{"path": "A", "split": "test"}], ConfigError, r"split='test' is not read: .* is one file"),
        (["A", "B.nowhere.jsonl"], DataError, r"^datasets\[1\]\.path='.*': no such file"),
        ([{"path": "A", "columns": ["prompt", "answr"]}], DataError, "did you mean 'answer'"),
        ([{"path": "A", "columns": ["answer"]}], DataError, r"^datasets\[0\] \(a.jsonl\) has no column"),
        (["A", "C"], DataError, "'answer' holds text in 'a.jsonl' and numbers in 'c.jsonl'"),
        (["A", "M"], DataError, "'prompt' holds text in 'a.jsonl' and lists in 'm.jsonl'"),
        (["A", "S"], DataError, r"has a column 'dataset_source', where a mixture says"),
        (["A", "E"], DataError, r"has no rows"),
    ],
)
def test_what_cannot_be_mixed_is_refused(two, tmp_path, change, error, says):
    write(tmp_path / "c.jsonl", {"prompt": "c", "answer": 3})
    write(tmp_path / "m.jsonl", {"prompt": [{"role": "user", "content": "m"}], "answer": "3"})
    write(tmp_path / "s.jsonl", {"prompt": "s", "answer": "3", SOURCE: "mine"})
    write(tmp_path / "e.jsonl")
    named = {"A": two[0], "B": two[1]} | {name: str(tmp_path / f"{name.lower()}.jsonl") for name in "CMSE"}
    named["B.nowhere.jsonl"] = str(tmp_path / "nowhere.jsonl")
    change = [
        {**one, "path": named[one["path"]]}
        if isinstance(one, dict) and "path" in one
        else named.get(str(one), one)
        for one in change
    ]
    with pytest.raises(error, match=says) as refused:
        load_prompts(change)
    assert "\n" not in str(refused.value)


def test_a_folder_of_groups_knows_its_sources_and_other_fractions_are_other_prompts(two, tmp_path):
    a, b = two
    mixed = [{"path": a, "fraction": 0.5}, {"path": b, "fraction": 0.5}]

    def prompts(spec):
        return tokenize_prompts(load_prompts(spec, limit=6), make_tokenizer())

    result = roll(tmp_path / "out", prompts=prompts(mixed))
    assert result.manifest["draw"]["prompts"]["sources"] == {"a.jsonl": 3, "b.jsonl": 3}
    assert [group.columns[SOURCE] for group in read_groups(tmp_path / "out")] == ["a.jsonl", "b.jsonl"] * 3
    assert roll(tmp_path / "out", prompts=prompts(mixed)).shards_drawn == 0
    mixed[0]["fraction"] = 2.5
    with pytest.raises(ConfigError, match=r"prompts.sources.a.jsonl: 3 there, 5 now"):
        roll(tmp_path / "out", prompts=prompts(mixed))
    assert "sources" not in prompt_identity(tokenize_prompts(load_prompts(a), make_tokenizer()))


def test_a_mixture_is_copied_and_given_again_as_it_is(two):
    mixture = mixture_of([{"path": two[0], "fraction": 2}, {"path": two[1], "fraction": 1}])
    assert mixture == "mixture of a.jsonl (0.667), b.jsonl (0.333)"
    assert deepcopy(mixture).value == mixture.value == mixture_of(mixture.entries).value


@pytest.fixture
def folders(tmp_path):
    """As `two`, each a folder of which the last file is broken."""
    for name, count in (("a", 30), ("b", 10)):
        (tmp_path / name).mkdir()
        rows = [{"prompt": f"{name}{i}", "answer": str(i)} for i in range(count)]
        write(tmp_path / name / "train-0.jsonl", *rows)
        (tmp_path / name / "train-1.jsonl").write_text("{ no json")
    return [str(tmp_path / name) for name in ("a", "b")]


def test_a_streamed_mixture_is_the_beginning_of_the_whole_and_reads_no_more(two, folders, capsys):
    fractions = (0.7, 0.3)
    whole, streamed = (
        [{"path": path, "fraction": share} for path, share in zip(paths, fractions, strict=True)]
        for paths in (two, folders)
    )
    for limit in (1, 2, 7, 20):
        rows = load_prompts(streamed, streaming=True, limit=limit)
        expected = load_prompts(whole, limit=limit)
        assert texts(rows) == texts(expected)
        assert [row.position for row in rows] == [row.position for row in expected]
        assert [row[SOURCE] for row in rows] == [row[SOURCE].removesuffix(".jsonl") for row in expected]
    assert "mixture of 20 prompts: a 14, b 6\n" in capsys.readouterr().err
    with pytest.raises(DataError, match="could not be loaded"):
        load_prompts(streamed, limit=20)
    mixed = [streamed[0], whole[1]]
    assert texts(load_prompts(mixed, streaming=True, limit=7)) == texts(load_prompts(whole, limit=7))
    for folder in folders:
        Path(folder, "train-1.jsonl").unlink()
    ended = load_prompts(streamed, streaming=True, limit=100)
    assert texts(ended) == texts(load_prompts(whole)), "both end where b has no more"
    assert "b has no more" in capsys.readouterr().err


def test_a_mixture_of_unknown_sizes_is_not_streamed(folders):
    with pytest.raises(
        ConfigError, match=r"datasets\[0\] \(a\) has none.*give each a fraction, or leave out"
    ):
        load_prompts(folders, streaming=True, limit=3)
    with pytest.raises(ConfigError, match=r"datasets\[0\] \(a\) has none"):
        PromptOptions(datasets=folders, dataset_streaming=True)
    given = PromptOptions(
        datasets=[{"path": path, "fraction": 1} for path in folders], dataset_streaming=True
    )
    assert STREAMS not in absent_splits({"splits": given.prompt_source})


@pytest.mark.parametrize("name", ["a.jsonl", "rows"])
def test_what_is_no_stream_in_a_mixture_refuses_streaming(two, name):
    part = two[0] if name == "a.jsonl" else InMemory("rows", [{"prompt": "p"}])
    mixed = PromptOptions(datasets=[{"path": part, "fraction": 1}]).prompt_source
    assert STREAMS in absent_splits({"splits": mixed})
