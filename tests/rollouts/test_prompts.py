import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import prompt_id_of
from nonpareil.rollouts import load_prompts, tokenize_prompts
from tests.rollouts.conftest import make_tokenizer

ROWS = [{"prompt": "the film was good", "answer": 4}, {"prompt": "2024", "answer": 5}]
CHAT = [{"role": "user", "content": "the film"}]


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif name == "data files":
        path.mkdir()
        pq.write_table(pa.Table.from_pylist(ROWS), path / "train.parquet")
    else:
        path.write_text(
            {
                "list.json": json.dumps(ROWS),
                "data.json": json.dumps({"data": ROWS}),
                "lines.json": "\n".join(map(json.dumps, ROWS)),
                "rows.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
                "rows.csv": "prompt,answer\nthe film was good,4\n2024,5\n",
            }[name]
        )
    return path


KINDS = ["a.parquet", "list.json", "data.json", "lines.json", "rows.jsonl", "rows.csv", "saved", "data files"]


@pytest.mark.parametrize("name", KINDS)
def test_every_source_gives_the_same_rows(tmp_path, monkeypatch, name):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_prompts(written(tmp_path, name))
    assert rows == ROWS
    assert [row.position for row in rows] == [0, 1]


def test_text_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("the film\na dull film\n")
    assert load_prompts(tmp_path / "a.txt") == [{"prompt": "the film"}, {"prompt": "a dull film"}]


def test_shuffle_keeps_positions_and_so_ids(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["the film"] * 20))
    rows = load_prompts(tmp_path / "a.txt", seed=1, limit=5)
    positions = [row.position for row in rows]
    assert len(set(positions)) == 5
    assert positions != sorted(positions)
    assert load_prompts(tmp_path / "a.txt", seed=1)[:5] == rows
    ids = [prompt.prompt_id for prompt in tokenize_prompts(rows, make_tokenizer())]
    assert ids == [prompt_id_of("the film", position) for position in positions]


def test_another_column_becomes_the_prompt(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "the film", "answer": 1}\n')
    assert load_prompts(tmp_path / "a.jsonl", prompt_column="question") == [
        {"prompt": "the film", "answer": 1}
    ]


def test_messages_lose_the_keys_that_datasets_filled_with_none(tmp_path):
    row = {"prompt": [{**CHAT[0], "name": None}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert load_prompts(tmp_path / "a.jsonl") == [{"prompt": CHAT}]


def test_splits_of_a_saved_dataset(tmp_path):
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    both.save_to_disk(tmp_path / "saved")
    assert load_prompts(tmp_path / "saved", split="test") == ROWS
    with pytest.raises(DataError, match=r"no split 'tests'; it has: train, test; did you mean 'test'"):
        load_prompts(tmp_path / "saved", split="tests")


def test_unknown_split_of_data_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match=r"no split 'validation'; it has: train"):
        load_prompts(written(tmp_path, "data files"), split="validation")


BAD_FILES = {
    "empty prompt": ("a.jsonl", '{"prompt": "the"}\n{"prompt": "  "}', r"row 1 .*is empty"),
    "blank line": ("a.txt", "the film\n\na film", r"row 1 .*is empty"),
    "empty conversation": ("a.jsonl", '{"prompt": []}', r"row 0 .*is empty"),
    "a number": ("a.jsonl", '{"prompt": 3}', r"row 0 .*is a int \(3\)"),
    "null": ("a.jsonl", '{"prompt": null}', r"row 0 .*is a NoneType"),
    "no role": ("a.jsonl", '{"prompt": [{"content": "x"}]}', r"is no message of \{role, content\}"),
    "tool calls": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "x", "tool_calls": "y"}]}',
        r"tool_calls='y' must be a list of",
    ),
    "another key": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "x", "weight": 1}]}',
        r"'weight', which is not taken beside role, content, name, tool_calls, tool_call_id; remove it",
    ),
    "null content": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": null}]}',
        r"content may be null beside tool_calls alone",
    ),
    "a number for a name": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "x", "name": 3}]}',
        r"a message's name=3 must be text",
    ),
    "a call at the end": (
        "a.jsonl",
        '{"prompt": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, '
        '{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": '
        '[{"function": {"name": "f"}}]}]}',
        r"ends with the assistant's tool_calls",
    ),
    "no column": (
        "a.jsonl",
        '{"prompts": "x"}',
        r"no column 'prompt' \(it has: prompts\); did you mean 'prompts'",
    ),
    "messages": ("a.jsonl", '{"messages": []}', r"prompt_column='messages' if each ends where"),
    "no rows": ("a.jsonl", "\n", r"has no rows"),
    "broken line": ("a.jsonl", '{"prompt": "x"}\n{', r"line 2 is not JSON"),
    "not an object": ("a.jsonl", '["x"]', r"line 1 is a list"),
    "broken JSON": ("a.json", "{", r"is not JSON"),
    "columns": ("a.json", '{"prompt": ["x"], "b": [1]}', r"must hold a list of objects"),
    "broken parquet": ("a.parquet", "no", r"cannot be read as parquet"),
    "ragged CSV": ("a.csv", "prompt,b\nx,1\ny,2,3\n", r"cannot be read as csv"),
    "unknown type": ("a.tsv", "prompt\nx", r"type '.tsv' is not read; give one of .parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_with_the_place(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_prompts(tmp_path / name)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"cannot be read as txt: 'utf-8'"):
        load_prompts(tmp_path / "a.txt")


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}')
    with pytest.raises(DataError, match=r"no such file or directory; did you mean '.*prompts.jsonl'"):
        load_prompts(tmp_path / "prompt.jsonl")


def test_a_hub_name_that_cannot_be_loaded(monkeypatch):
    def offline(*arguments: object, **options: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/nothing' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"'org/nothing' is no file here and could not be loaded: Dataset"):
        load_prompts("org/nothing")


def test_limit_below_one(tmp_path):
    with pytest.raises(ConfigError, match="limit=0"):
        load_prompts(written(tmp_path, "rows.csv"), limit=0)


# --- What the policy sees


@pytest.mark.parametrize(
    ("template", "text", "ids"),
    [
        ("<s> $A", "the film", [1, 7, 8]),
        ("<s> $A </s>", "the film", [1, 7, 8]),  # the tokenizer ends texts: a prompt is not ended
        ("$A </s>", "the film", [7, 8]),
        ("$A", "the film", [7, 8]),
        ("<s> $A", "<s> the film", [1, 7, 8]),  # already rendered by the user: one BOS
        ("<s> $A </s>", "the film </s>", [1, 7, 8, 2]),  # the user's own end token stays
    ],
)
def test_a_text_prompt_begins_once_and_is_never_ended(template, text, ids):
    [prompt] = tokenize_prompts([{"prompt": text}], make_tokenizer(template=template))
    assert prompt.token_ids == ids


def test_a_beginning_token_that_is_also_the_end_token_stays():
    tokenizer = make_tokenizer(template="<s> $A <s>", eos="<s>")
    [prompt] = tokenize_prompts([{"prompt": "the film"}], tokenizer)
    assert prompt.token_ids == [1, 7, 8]


def test_a_conversation_goes_through_the_chat_template():
    [prompt] = tokenize_prompts([{"prompt": CHAT, "answer": 4}], make_tokenizer(chat=True))
    assert prompt.token_ids == [1, 4, 7, 8, 5]
    assert prompt.columns == {"answer": 4}


def test_an_assistant_turn_at_the_end_is_continued():
    prefilled = [*CHAT, {"role": "assistant", "content": "very"}]
    [prompt] = tokenize_prompts([{"prompt": prefilled}], make_tokenizer(chat=True))
    assert prompt.token_ids == [1, 4, 7, 8, 5, 16]


@pytest.mark.parametrize(
    ("content", "kept"), [("{{ m['content'] }}", "very "), ("{{ m['content'] | trim }}", "very")]
)
def test_words_to_be_continued_are_kept_as_the_template_writes_them(content, kept):
    """Llama's and Gemma's templates trim: the policy goes on from no space, and says the next one itself."""
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> " + content + "{{ eos_token }}{% endfor %}"
    )
    prefilled = [*CHAT, {"role": "assistant", "content": "very "}]
    [prompt] = tokenize_prompts([{"prompt": prefilled}], tokenizer)
    assert prompt.prompt == [*CHAT, {"role": "assistant", "content": kept}]
    assert prompt.prompt_id == prompt_id_of(prefilled, 0)
    assert prompt.token_ids == [1, 4, 7, 8, 2, 5, 16]


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_turn_of_the_assistant_at_the_end_is_refused(content):
    prefilled = [*CHAT, {"role": "assistant", "content": content}]
    with pytest.raises(DataError, match=r"row 0 .*: the prompt ends with an empty message of the assistant"):
        tokenize_prompts([{"prompt": prefilled}], make_tokenizer(chat=True))


def test_a_template_that_writes_the_beginning_twice_gives_one():
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{{ bos_token }} {{ bos_token }}{{ messages[0]['content'] }}"
    assert tokenize_prompts([{"prompt": CHAT}], tokenizer)[0].token_ids == [1, 7, 8]


def test_chat_template_options_reach_the_template():
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if think %} long{% endif %}"
    [prompt] = tokenize_prompts([{"prompt": CHAT}], tokenizer, {"think": True})
    assert prompt.token_ids == [7, 8, 14]


def test_a_conversation_needs_a_template_and_one_that_takes_it():
    with pytest.raises(
        DataError, match="row 0 is a conversation, but the policy's tokenizer has no chat template"
    ):
        tokenize_prompts([{"prompt": CHAT}], make_tokenizer())
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(DataError, match=r"the chat template refuses roles \['user'\]: system first"):
        tokenize_prompts([{"prompt": CHAT}], tokenizer)


def test_without_a_tokenizer_prompts_keep_their_ids_and_have_no_tokens():
    rows = [{"prompt": "the film", "id": 3}, {"prompt": "a film", "id": 4}]
    bare, read = tokenize_prompts(rows, None), tokenize_prompts(rows, make_tokenizer())
    assert [prompt.token_ids for prompt in bare] == [[], []]
    assert [prompt.prompt_id for prompt in bare] == [prompt.prompt_id for prompt in read]
    assert [prompt.columns for prompt in bare] == [{"id": 3}, {"id": 4}]


def test_a_tokenizer_by_name_is_refused():
    with pytest.raises(ConfigError, match="tokenizer is a str; give the policy's tokenizer itself"):
        tokenize_prompts([{"prompt": "good"}], "some-org/some-model")


def test_answered_conversations_are_told_of_once(capsys):
    rows = [{"prompt": [*CHAT, {"role": "assistant", "content": f"the film {i}"}]} for i in range(7)]
    for _ in range(2):
        tokenize_prompts([*rows, {"prompt": CHAT}], make_tokenizer(chat=True))
    assert capsys.readouterr().err.count("7 of 8 prompts end with the assistant's own words") == 1
