"""Held-out parts of a dataset, and datasets read as streams."""

import json
from collections import Counter

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.rollouts import load_prompts, tokenize_prompts
from tests.rollouts.conftest import make_tokenizer

TEXTS = [f"the film {i % 15}" for i in range(20)]  # five of them twice


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)))
    return path


@pytest.mark.parametrize(("size", "count"), [(0.2, 3), (4, 4), (1, 1), (14.0, 14), (0.99, None), (15, None)])
def test_a_part_is_held_out_and_nothing_of_it_is_trained_on(file, size, count):
    if count is None:
        with pytest.raises(
            ConfigError, match="of 15 different prompts holds out 15, and both parts need some"
        ):
            load_prompts(file, test_split_size=size)
        return
    training = load_prompts(file, test_split_size=size)
    held_out = load_prompts(file, test_split_size=size, held_out=True)
    texts = Counter(row["prompt"] for row in training)
    assert len(held_out) == len({row["prompt"] for row in held_out}) == count
    assert not texts.keys() & {row["prompt"] for row in held_out}
    assert texts == {text: n for text, n in Counter(TEXTS).items() if text in texts}
    assert len(texts) == 15 - count
    assert [row["id"] for row in held_out] == [
        row.position for row in held_out
    ]  # ids as of the whole dataset
    assert load_prompts(file, test_split_size=size, held_out=True, limit=1) == held_out[:1]
    ids = {prompt.prompt_id for prompt in tokenize_prompts([*training, *held_out], make_tokenizer())}
    assert ids <= {prompt.prompt_id for prompt in tokenize_prompts(load_prompts(file), make_tokenizer())}


@pytest.mark.parametrize("size", ["0.1", float("nan"), float("inf"), -0.5, True])
def test_a_part_that_is_no_number_above_zero_is_refused_by_name(file, size):
    with pytest.raises(ConfigError, match="test_split_size="):
        load_prompts(file, test_split_size=size)


def test_what_is_no_part_is_refused(file):
    with pytest.raises(ConfigError, match=r"test_split_size=2.5 must be a share below 1, or a whole number"):
        load_prompts(file, test_split_size=2.5)


def test_a_stream_is_read_as_far_as_it_is_asked_for(file):
    folder = file.parent
    whole = load_prompts(folder, split="train")
    first = load_prompts(folder, split="train", streaming=True, limit=3)
    assert first == whole[:3]
    assert [row.position for row in first] == [0, 1, 2]
    for how, says in (
        ({}, "nobody says how many; give max_prompts"),
        ({"limit": 2, "test_split_size": 0.1}, "test_split_size with dataset_streaming"),
        ({"limit": 2, "seed": 1}, "seed with dataset_streaming"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_prompts(folder, streaming=True, **how)


def test_a_stream_reads_no_file_that_it_does_not_need(tmp_path):
    good = "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)
    (tmp_path / "train-0.jsonl").write_text(good)
    (tmp_path / "train-1.jsonl").write_text("{ no json")
    assert [row["prompt"] for row in load_prompts(tmp_path, streaming=True, limit=3)] == TEXTS[:3]
    with pytest.raises(DataError, match="could not be loaded"):
        load_prompts(tmp_path, limit=3)
