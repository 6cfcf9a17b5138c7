"""The column `tools`: what the chat template writes of it, where it is refused, and how folders remember it."""

import json
from typing import Any

import pytest

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, prompt_identity
from nonpareil.rollouts import read_groups, tokenize_prompts
from tests.rollouts.conftest import CHAT_TEMPLATE, WORDS, combined, make_tokenizer, never, roll

READS = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}" + CHAT_TEMPLATE


def tool(name: str, **schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **schema}}


def tokenizer(template: str = READS) -> Any:
    made = make_tokenizer(chat=True)
    made.chat_template = template
    return made


def row(tools: Any, text: str = "the film", **columns: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}], "tools": tools, **columns}


def read(tools: Any, kwargs: Any = None, **columns: Any) -> Prompt:
    return tokenize_prompts([row(tools, **columns)], tokenizer(), kwargs)[0]


def test_the_template_is_given_each_rows_tools_as_a_list_or_as_json():
    [good] = make_tokenizer().convert_tokens_to_ids(["good"])
    bare, one = read(None), read([tool("good")])
    assert one.token_ids == [good, *bare.token_ids]
    assert one.prompt_id != bare.prompt_id  # other tools are another prompt
    assert one.columns["tools"] == [tool("good")]  # which rewards read too
    arrow = [tool("good", parameters={"x": {"type": "string"}, "y": None}), None][:1]
    for same in (json.dumps([tool("good")]), arrow):
        assert read(same).token_ids == one.token_ids
    for none in ([], "", "[]", None):
        assert (read(none).token_ids, read(none).prompt_id) == (bare.token_ids, bare.prompt_id)
    for_all = read(None, {"tools": [tool("good")]})
    assert for_all.token_ids == one.token_ids
    assert for_all.rendering.chat_template_kwargs == {"tools": [tool("good")]}


@pytest.mark.parametrize(
    ("rows", "how", "error", "says"),
    [
        ([row([tool("good")])], {"template": CHAT_TEMPLATE}, ConfigError, "never mentions tools"),
        ([row([tool("good")])], {"template": None}, ConfigError, "the server renders the prompts"),
        ([row([tool("good")])], {"kwargs": {"tools": [tool("bad")]}}, ConfigError, "give one of them"),
        (
            [row(None)],
            {"kwargs": {"tools": "hammer"}},
            DataError,
            "^chat_template_kwargs: tools='hammer' must",
        ),
        (
            [row(None), row("hammer")],
            {},
            DataError,
            "row 1 .*: tools='hammer' must be a list of JSON schemas",
        ),
        ([row({"name": "good"})], {}, DataError, "row 0 .*must be a list"),
        (
            [row([tool("good")])],
            {"template": CHAT_TEMPLATE + "{# tools #}"},
            DataError,
            "writes none of its tools",
        ),
        ([{"prompt": "the film", "tools": [tool("good")]}], {}, DataError, "its tools would not be written"),
        (
            [row(None, chat_template_kwargs={"a": 1})],
            {},
            DataError,
            "column 'chat_template_kwargs' is not read",
        ),
    ],
)
def test_tools_that_nobody_would_read_are_refused(rows, how, error, says):
    template = how.get("template", READS)
    with pytest.raises(error, match=says):
        tokenize_prompts(rows, None if template is None else tokenizer(template), how.get("kwargs"))


def test_a_column_of_another_kind_rides_along_with_strings():
    [prompt] = tokenize_prompts([{"prompt": "the film", "tools": "hammer"}], make_tokenizer())
    assert prompt.columns == {"tools": "hammer"}


def letters(completions: list[Any], tools: list[Any], **columns: Any) -> list[float]:
    return [len(c[0]["content"]) + 0.1 * len(t) for c, t in zip(completions, tools, strict=True)]


def test_a_folder_keeps_the_tools_and_tells_others_apart(tmp_path):
    rows = [row([tool(WORDS[i], parameters={WORDS[i]: {"type": "string"}})]) for i in range(8)]
    prompts = tokenize_prompts(rows, tokenizer())
    folder = roll(tmp_path / "out", prompts=prompts, reward=combined(letters)).output_dir
    groups = read_groups(folder)
    assert [group.columns["tools"] for group in groups] == [one["tools"] for one in rows]
    assert [group.prompt_token_ids for group in groups] == [prompt.token_ids for prompt in prompts]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["draw"]["prompts"]["rendering"]["tools"] is True
    others = tokenize_prompts([row([tool(WORDS[i])]) for i in range(8)], tokenizer())
    dropped = tokenize_prompts([{"prompt": one["prompt"]} for one in rows], tokenizer())
    for changed in (others, dropped):
        with pytest.raises(ConfigError, match=r"prompts\.sha256: .* \(other prompts"):
            roll(folder, prompts=changed, engine=never, reward=combined(letters))
    assert "tools" not in prompt_identity(dropped)["rendering"]  # as manifests of earlier versions have it
