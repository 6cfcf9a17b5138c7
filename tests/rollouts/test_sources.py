"""Prompts that are damaged, ambiguous or of another kind, each refused with its place."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.version import Version

from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts import load_prompts, read_vbon, tokenize_prompts
from tests.rollouts.conftest import make_tokenizer

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"the film\n"),
        ("a.jsonl", b'{"prompt": "the film"}\n'),
        ("a.json", b'[{"prompt": "the film"}]'),
        ("a.csv", b"prompt\nthe film\n"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_bytes(MARK + content)
    assert load_prompts(tmp_path / name) == [{"prompt": "the film"}]
    if name == "a.json" and Version(datasets.__version__).major < 5:
        pytest.skip("a folder is read by datasets, which takes a mark in a list of objects from version 5 on")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"train.{name[2:]}").write_bytes(MARK + content)
    column = "text" if name == "a.txt" else "prompt"
    assert load_prompts(folder, prompt_column=column) == [{"prompt": "the film"}]


def test_a_text_files_prompts_keep_their_characters(tmp_path):
    (tmp_path / "a.txt").write_text("I think\u2028that\nHe\x85said\fso\n", encoding="utf-8")
    assert [row["prompt"] for row in load_prompts(tmp_path / "a.txt")] == [
        "I think\u2028that",
        "He\x85said\fso",
    ]


def test_a_csvs_line_ends_within_quotes_are_kept(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'prompt,b\r\n"two\r\nlines",1\r\n')
    assert load_prompts(tmp_path / "a.csv") == [{"prompt": "two\r\nlines", "b": 1}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "so good \\ud83d"}', r"a.jsonl, row 1 .*the prompt holds '\\ud83d' at character 8"),
        ('{"prompt": [{"role": "user", "content": "\\ud83d"}]}', r"row 1 .*prompt\[0\]\['content'\] holds"),
        ('{"prompt": "x", "answer": {"a": ["\\udc00"]}}', r"row 1 .*column 'answer'\['a'\]\[0\] holds"),
        ('{"prompt": "x", "\\udc00": 1}', r"row 1 .*a column's name holds"),
        ('{"prompt": "x", "prompt": "y"}', r"line 2: key 'prompt' is given twice"),
        ('{"prompt": "x", "a": ' + "9" * 5000 + "}", r"line 2: .*5000 digits"),
    ],
)
def test_a_row_that_is_no_text_is_named(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_text('{"prompt": "the film"}\n' + content + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=says):
        load_prompts(tmp_path / "a.jsonl")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,b,b\nx,1,2\n", encoding="utf-8")
    pq.write_table(
        pa.table([pa.array(["x"]), pa.array(["y"])], names=["prompt", "prompt"]), tmp_path / "a.parquet"
    )
    for name, column in (("a.csv", "b"), ("a.parquet", "prompt")):
        with pytest.raises(DataError, match=f"has 2 columns '{column}'; rename or remove one"):
            load_prompts(tmp_path / name)


def test_a_list_that_breaks_off_is_not_taken_for_lines(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"prompt": "x"},\n{"prompt":\n]', encoding="utf-8")
    with pytest.raises(DataError, match=r"is not JSON: .*line 4"):
        load_prompts(tmp_path / "a.json")


def test_a_link_to_nowhere_is_called_so(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"a symbolic link to nowhere \('gone.jsonl'\)"):
        load_prompts(tmp_path / "a.jsonl")


def test_a_folder_whose_files_are_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"could not be loaded: .*JSON parse error") as caught:
        load_prompts(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["the film"], r"rows\[0\] is a str; give a list of rows"),
        ("the film", r"rows is a str"),
        ({"prompt": "the film"}, r"rows is a dict"),
        ([{"prompt": "x", 3: 1}], r"row 0 .*a column is called 3, which is no text"),
        ([{"prompt": "x", "a": "\ud83d"}], r"row 0 .*column 'a' holds"),
    ],
)
def test_rows_from_python_are_checked_as_those_of_files(rows, says):
    with pytest.raises(DataError, match=says):
        tokenize_prompts(rows, make_tokenizer())


@pytest.mark.parametrize("limit", ["3", 2.0, True, 0])
def test_a_limit_is_a_whole_number(tmp_path, limit):
    with pytest.raises(ConfigError, match="limit="):
        load_prompts(tmp_path / "a.txt", limit=limit)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ messages[0].content + 3 }}", r"fails on roles \['user'\]: TypeError"),
        ("{{ messages[0].nothing.more }}", r"refuses roles \['user'\]: .*no attribute 'nothing'"),
        ("{{ messages | map(attribute='x') | sum + {} }}", r"(fails on|refuses) roles \['user'\]: "),
        (
            "{{ raise_exception('roles must\nalternate') }}",
            r"refuses roles \['user'\]: roles must alternate$",
        ),
        ("{% for m in messages %}{{ m.content }}", r"is no Jinja template, in its line 1"),
    ],
)
def test_whatever_a_template_raises_is_one_line_with_the_row(template, says):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    rows = [{"prompt": "the film"}, {"prompt": [{"role": "user", "content": "the film"}]}]
    with pytest.raises(DataError, match=f"^row 1: the chat template {says}") as caught:
        tokenize_prompts(rows, tokenizer)
    assert "\n" not in str(caught.value)


def test_vbon_lines_are_read_as_strictly(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARK + b'{"prompt": "a", "text": "b", "reward": 1}\n')
    assert read_vbon(path)[0].prompt == "a"
    for line, says in (
        ('"text": "\\ud83d", "reward": 1', r"line 1\['text'\] holds"),
        ('"prompt": "b"', "given twice"),
    ):
        path.write_text('{"prompt": "a", ' + line + "}", encoding="utf-8")
        with pytest.raises(DataError, match=says):
            read_vbon(path)


def test_conversations_in_a_json_column_are_no_strings(tmp_path):
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no type Json")
    turn = [{"role": "user", "content": "the film"}]
    features = datasets.Features({"prompt": datasets.Json(), "answer": datasets.Value("string")})
    data = datasets.Dataset.from_dict({"prompt": [turn], "answer": ["1"]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    assert load_prompts(tmp_path / "a.parquet") == [{"prompt": turn, "answer": "1"}]
