"""The end of a chat turn, read from chat templates as models have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from nonpareil.models.endings import endings_of, turn_end_id
from nonpareil.models.loading import end_token_ids, load_policy, stored_end_token_ids
from nonpareil.models.saving import prepare_saving
from nonpareil.records import Prompt, Rendering
from tests.tiny import VOCABULARY, make_model, make_tokenizer

BAD = VOCABULARY.index("bad")
TALK = [{"role": "user", "content": "a good film"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PER_ROLE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NEXT_OPENS = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
IN_WORDS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}User:"
TRIMS_AND_THINKS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<t></t>' + m['content'] | trim + '<|eot|>' }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
TWO_ENDS = (
    "{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
NO_ANSWERS = (
    "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('x') }}{% endif %}{% endfor %}"
)
BY_ARGUMENT = "{% for m in messages %}{{ m['content'] + (closing | default('<|im_end|>')) }}{% endfor %}"


def chat_tokenizer(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                "<user>",
                "<assistant>",
                "<|im_start|>",
                "<|im_end|>",
                "<|end|>",
                "<|eot|>",
            ]
        }
    )
    tokenizer.add_tokens(["<|im"])  # a prefix of another
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "closes"),
    [
        (CHATML, "<|im_end|>"),
        (PER_ROLE, "</s>"),
        (TRIMS_AND_THINKS, "<|eot|>"),
        (TWO_ENDS, "<|end|>"),
        (NEXT_OPENS, None),
        (IN_WORDS, None),
        (NO_ANSWERS, None),
        ("{% if x %}", None),
        (None, None),
    ],
)
def test_the_turns_end_is_the_token_behind_an_answer(template: str | None, closes: str | None) -> None:
    tokenizer = chat_tokenizer(template or "")
    found = turn_end_id(tokenizer, TALK, {})
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == closes
    # An answer that the prompt begins is no turn of its own.
    assert turn_end_id(tokenizer, [*TALK, {"role": "assistant", "content": "it was"}], {}) == found


def test_the_templates_arguments_count() -> None:
    tokenizer = chat_tokenizer(BY_ARGUMENT)
    rendering = Rendering("", "", {"closing": "<|eot|>"})
    eot, im_end = tokenizer.convert_tokens_to_ids(["<|eot|>", "<|im_end|>"])
    with_it = endings_of(frozenset({2}), tokenizer, [Prompt("p", TALK, [1], rendering=rendering)])
    assert with_it.describe() == {"end_token_ids": [2, eot], "turn_end_token_id": eot}
    without = endings_of(frozenset({2, im_end}), tokenizer, [Prompt("p", TALK, [1])])
    assert without.describe() == {"end_token_ids": [2, im_end]}
    strings = endings_of(frozenset({2}), tokenizer, [Prompt("p", "a good film", [1])])
    assert strings.describe() == {"end_token_ids": [2]}


@pytest.mark.parametrize(
    ("generation", "config", "saved"),
    [
        (None, 2, [2, BAD]),
        (4, 7, [4, BAD]),
        ([5, 4], 7, [4, 5, BAD]),
        ([BAD, 4], 7, [BAD, 4]),
        (None, None, [2, BAD]),
    ],
)
def test_what_is_saved_ends_where_it_was_trained_to(generation: Any, config: Any, saved: list[int]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' bad' }}{% endfor %}"
    tokenizer.add_special_tokens({"additional_special_tokens": ["bad"]})
    model = make_model(eos_token_id=config)
    model.generation_config.eos_token_id = generation
    prepare_saving(model, tokenizer, [Prompt("p", TALK, [1])])
    assert model.generation_config.eos_token_id == saved
    assert end_token_ids(model, tokenizer) == set(saved)


def named_by(folder: Path, generation: Any, config: Any, tokenizer: Any) -> None:
    """A saved model whose ends are these; "absent" leaves the generation config's file out."""
    model, own = make_model(eos_token_id=config), make_tokenizer()
    model.generation_config.eos_token_id = None if generation == "absent" else generation
    own.eos_token = tokenizer
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    if generation == "absent":
        (folder / "generation_config.json").unlink()


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "ends"),
    [
        ("absent", 7, "</s>", {7}),
        ("absent", [5, 7], "</s>", {5, 7}),
        ("absent", None, "</s>", {2}),
        ("absent", None, None, set()),
        ([4, 5], 7, "</s>", {4, 5}),
        (4, 7, None, {4}),
        (None, 7, "</s>", {7}),
        (None, None, "bad", {BAD}),
    ],
)
def test_a_model_on_disk_ends_where_it_does_in_memory_and_is_saved_so(
    generation: Any, config: Any, tokenizer: Any, ends: set[int], tmp_path: Path
) -> None:
    named_by(tmp_path / "model", generation, config, tokenizer)
    model, own = load_policy(str(tmp_path / "model"), dtype="float32")
    assert stored_end_token_ids(str(tmp_path / "model"), own) == end_token_ids(model, own) == ends
    prepare_saving(model, own, [Prompt("p", "a film", [1])])
    model.save_pretrained(tmp_path / "saved")
    own.save_pretrained(tmp_path / "saved")
    assert stored_end_token_ids(str(tmp_path / "saved"), own) == ends
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text()).get("eos_token_id")
    assert set(written if isinstance(written, list) else [written]) - {None} == ends


def test_strings_leave_the_models_own_word(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    model.generation_config.eos_token_id = 4
    prepare_saving(model, make_tokenizer(), [Prompt("p", "a film", [1])])
    assert model.generation_config.eos_token_id == 4
    assert capsys.readouterr().err == ""
