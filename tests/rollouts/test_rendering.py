"""Chat templates that write the date: the prompts on disk are taken, and a real change is named."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import datasets
import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, prompt_identity
from nonpareil.rollouts import tokenize_prompts
from nonpareil.rollouts.rendering import RENDERED
from tests.rollouts.conftest import (
    CHAT_TEMPLATE,
    WORDS,
    combined,
    make_engine,
    make_tokenizer,
    never,
    shards,
)
from tests.rollouts.conftest import roll as roll_strings

# The second as a word of the vocabulary.
DATED = "{{ ['a', 'long', 'short'][strftime_now('%S') | int] }} {{ mood | default('') }} " + CHAT_TEMPLATE
MORNING, EVENING = (datetime(2026, 11, 26, 8, 0, second) for second in (1, 2))


def letters(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def words(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion[0]["content"].split())) for completion in completions]


def roll(folder: Any, **changes: Any) -> Any:
    return roll_strings(folder, **{"reward": combined(letters), **changes})


def make_dated(template: str = DATED) -> Any:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = template
    return tokenizer


def prompts_at(now: datetime, tokenizer: Any = None, **kwargs: Any) -> list[Prompt]:
    rows = [{"prompt": [{"role": "user", "content": f"the film was {WORDS[i]}"}]} for i in range(8)]
    return tokenize_prompts(rows, tokenizer or make_dated(), kwargs, now=now)


def test_all_prompts_have_one_moment_and_one_identity_on_every_day():
    morning, evening = prompts_at(MORNING), prompts_at(EVENING)
    long, short = (make_tokenizer().convert_tokens_to_ids(word) for word in ("long", "short"))
    assert {prompt.token_ids[0] for prompt in morning} == {long}
    assert {prompt.token_ids[0] for prompt in evening} == {short}
    assert prompt_identity(morning) == prompt_identity(evening)
    for other in (
        prompts_at(MORNING, mood="good"),
        prompts_at(MORNING, make_dated(DATED + " not")),
        prompts_at(MORNING)[::-1],
    ):
        assert prompt_identity(other) != prompt_identity(morning)


def test_a_run_goes_on_another_day_with_the_prompts_it_was_begun_with(tmp_path, capsys):
    folder = tmp_path / "out"
    begun = roll(folder, prompts=prompts_at(MORNING), engine=lambda: make_engine(make_dated()))
    groups = begun.groups()
    shards(folder)[2].unlink()
    capsys.readouterr()
    later = roll(folder, prompts=prompts_at(EVENING), engine=lambda: make_engine(make_dated()))
    assert capsys.readouterr().err.count("they are taken as they were then\n") == 1
    assert (later.shards_drawn, later.shards_scored) == (1, 1)
    assert later.groups() == groups  # the missing shard was drawn for the morning's prompts
    assert later.manifest["draw"] == begun.manifest["draw"]

    (folder / RENDERED).unlink()
    scored = roll(folder, prompts=prompts_at(EVENING), engine=never, reward=combined(words))
    assert (scored.shards_drawn, scored.shards_scored) == (0, 4)  # nothing is to be drawn, so nobody asks
    shards(folder)[2].unlink()
    for content in (None, b"", b"PK\x03\x04"):
        if content is not None:
            (folder / RENDERED).write_bytes(content)
        with pytest.raises(DataError, match=f"{RENDERED}, which keeps the prompts .* missing or damaged"):
            roll(folder, prompts=prompts_at(EVENING), engine=never)
    assert roll(folder, prompts=prompts_at(MORNING)).shards_drawn == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mood": "good"}, "prompts.rendering.chat_template_kwargs.mood: None there, 'good' now"),
        ({"tokenizer": make_dated(DATED + " not")}, r"chat_template: .* now \(another chat template\)"),
        ({"tokenizer": make_tokenizer(chat=True, eos="<pad>")}, r"tokenizer: .* now \(another tokenizer\)"),
    ],
)
def test_another_rendering_is_refused_by_name(tmp_path, change, message):
    roll(tmp_path / "out", prompts=prompts_at(MORNING))
    with pytest.raises(ConfigError, match=message) as raised:
        roll(tmp_path / "out", prompts=prompts_at(EVENING, **change), engine=never)
    assert "token_ids" not in str(raised.value)


def test_string_prompts_that_read_otherwise_are_refused(tmp_path):
    rows = [{"prompt": f"the film was {WORDS[i]}"} for i in range(8)]
    roll_strings(tmp_path / "out", prompts=tokenize_prompts(rows, make_tokenizer()))
    assert not (tmp_path / "out" / RENDERED).exists()
    others = tokenize_prompts(rows, make_tokenizer(template="$A"))
    with pytest.raises(ConfigError, match=r"prompts.token_ids_sha256: .* now \(the tokenizer reads"):
        roll(tmp_path / "out", prompts=others, engine=never)


def test_a_folder_of_conversations_is_still_one_dataset(tmp_path):
    folder = roll(tmp_path / "out", prompts=prompts_at(MORNING), shard_size=8).output_dir
    assert (folder / RENDERED).is_file()
    read = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(read) == 8
    roll(folder, prompts=prompts_at(EVENING)[:4], overwrite=True, engine=make_engine)
    assert len(shards(folder)) == 2


def test_arguments_of_the_template_reach_it_or_are_refused():
    plain, cheerful = prompts_at(MORNING), prompts_at(MORNING, mood="good")
    good = make_tokenizer().convert_tokens_to_ids("good")
    assert [p.token_ids for p in cheerful] == [[p.token_ids[0], good, *p.token_ids[1:]] for p in plain]
    assert cheerful[0].rendering.chat_template_kwargs == {"mood": "good"}
    strings = [{"prompt": "the film"}]
    chat = [{"prompt": [{"role": "user", "content": "the film"}]}]
    for rows, tokenizer, kwargs, message in (
        (chat, make_dated(), {"moood": 1}, "chat template never mentions 'moood'"),
        (chat, make_dated(), {"add_generation_prompt": False}, "'add_generation_prompt' is set here"),
        (chat, make_dated(), {"mood": object()}, "a manifest must be able to hold"),
        (chat, None, {"mood": "good"}, "the server renders the prompts; remove it"),
        (strings, make_dated(), {"mood": "good"}, "the prompts are strings"),
    ):
        with pytest.raises(ConfigError, match=rf"chat_template_kwargs.*{message}"):
            tokenize_prompts(rows, tokenizer, kwargs)


def test_prompts_whose_rendering_nobody_knows_are_told_apart_by_their_ids(tmp_path):
    unknown = [replace(prompt, rendering=None) for prompt in prompts_at(MORNING)]
    roll(tmp_path / "out", prompts=unknown)
    moved = [replace(prompt, rendering=None) for prompt in prompts_at(EVENING)]
    with pytest.raises(ConfigError, match=r"prompts.token_ids_sha256"):
        roll(tmp_path / "out", prompts=moved, engine=never)
