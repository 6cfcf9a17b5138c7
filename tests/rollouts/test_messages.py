"""Messages with `tool_calls`, `name`, `tool_call_id` and null content: rendered, told apart, kept, and refused."""

import json
from typing import Any

import datasets
import pytest

from nonpareil.errors import DataError
from nonpareil.records import Prompt, turn_text
from nonpareil.rewards.models.template_check import check_words
from nonpareil.rollouts import export, load_prompts, read_groups, tokenize_prompts
from nonpareil.rollouts.columns import FURTHER
from nonpareil.rollouts.store import read_table
from tests.rollouts.conftest import CHAT_TEMPLATE, combined, make_engine, make_tokenizer, roll, shards

READS = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] or '' }} "
    "{% for call in m.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments.film }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def call(film: str = "good", **further: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "id": "c1",
        "function": {"name": "very", "arguments": {"film": film, **further}},
    }


def talk(*calls: Any, content: Any = None) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "the film"},
        {"role": "assistant", "content": content, "tool_calls": list(calls)},
        {"role": "tool", "content": "bad", "name": "very", "tool_call_id": "c1"},
    ]


def tokenizer(template: str = READS) -> Any:
    made = make_tokenizer(chat=True)
    made.chat_template = template
    return made


def read(prompt: Any, template: str = READS) -> Prompt:
    return tokenize_prompts([{"prompt": prompt}], tokenizer(template))[0]


def test_the_template_is_given_calls_and_they_are_part_of_the_prompt(capsys):
    one, other = read(talk(call())), read(talk(call("great")))
    very, good = make_tokenizer().convert_tokens_to_ids(["very", "good"])
    assert any(one.token_ids[i : i + 2] == [very, good] for i in range(len(one.token_ids)))
    assert one.token_ids != other.token_ids
    assert one.prompt_id != other.prompt_id
    assert one.prompt == talk(call())
    assert (
        read([{"role": "user", "content": "a", "name": "x"}]).prompt_id
        != read([{"role": "user", "content": "a"}]).prompt_id
    )
    assert "does not write the name and tool_call_id of messages" in capsys.readouterr().err


def test_nulls_that_arrow_adds_are_no_part_of_a_message(tmp_path):
    rows = [talk(call(), call("bad")), talk(call("good", long="great"))]
    table = datasets.Dataset.from_list([{"prompt": row} for row in rows])
    assert table[0]["prompt"][0]["tool_calls"] is None  # it has filled up all messages alike
    table.to_parquet(tmp_path / "p.parquet")
    assert [row["prompt"] for row in load_prompts(tmp_path / "p.parquet")] == rows


@pytest.mark.parametrize(
    ("prompt", "template", "says"),
    [
        (talk(call()), READS.replace("tool_calls", "calls"), "writes none of the tool_calls"),
        (
            talk(call()),
            CHAT_TEMPLATE + "{# tool_calls #}",
            "(?:null content as the word None|writes none of the tool_calls)",  # transformers 5.24 leaves nulls out
        ),
        (
            talk(call(), content="a"),
            CHAT_TEMPLATE,
            "writes none of the tool_calls of a conversation of roles",
        ),
        (
            talk(call()),
            "{% for m in messages %}{{ m.content + ' ' }}{{ m.tool_calls }}{% endfor %}",
            "(?:fails on|refuses) roles .*; a message's content is null, and it may want ''",
        ),
        (
            talk(call(), content="a"),
            "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}"
            "{% endfor %}{% endfor %}",
            "it may want arguments of tool_calls as JSON text",
        ),
        (talk("very"), READS, "tool_calls=.* must be a list of"),
        (talk({"function": {"arguments": {}}}), READS, "tool_calls=.* must be a list of"),
    ],
)
def test_what_a_template_would_lose_is_refused_by_its_row(prompt, template, says):
    with pytest.raises(DataError, match=rf"^row 0.*{says}") as refused:
        read(prompt, template)
    assert "\n" not in str(refused.value)


def test_a_reward_models_template_must_write_the_calls_too():
    prompt = read(talk(call()))

    def render(messages: Any, answer: str, template: str = READS) -> str:
        whole = [*messages, {"role": "assistant", "content": answer}]
        return tokenizer(template).apply_chat_template(whole, tokenize=False)

    check_words([prompt], render, "rm", tokenizer())
    lost = READS.replace("tool_calls", "calls")
    with pytest.raises(DataError, match="reward model 'rm' writes none of the tool_calls"):
        check_words([prompt], lambda m, a: render(m, a, lost), "rm", tokenizer())


def test_groups_keep_messages_whole_in_one_schema(tmp_path):
    plain = [{"role": "user", "content": "the film"}]
    prompts = [plain, talk(call(x={"deep": [1, "y"]}), content=""), plain, talk(call())]
    seen = []

    def sees(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend(prompts)
        return [float(i) for i in range(len(completions))]

    given = tokenize_prompts([{"prompt": prompt} for prompt in prompts], tokenizer())
    engine = make_engine(tokenizer())
    roll(tmp_path / "out", prompts=given, engine=engine, reward=combined(sees), shard_size=1)
    assert [group.prompt for group in read_groups(tmp_path / "out")] == prompts
    assert all(prompt in seen for prompt in prompts)
    schemas = {tuple(read_table(shard).schema.names) for shard in shards(tmp_path / "out")}
    assert len(schemas) == 1
    assert FURTHER in schemas.pop()
    export(read_groups(tmp_path / "out"), tmp_path / "p.jsonl", "preference", truncated="allow")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    # Without such messages a shard is as it always was.
    given = tokenize_prompts([{"prompt": plain}], tokenizer())
    roll(tmp_path / "plain", prompts=given, engine=engine, reward=combined(sees))
    assert FURTHER not in read_table(shards(tmp_path / "plain")[0]).schema.names


def test_a_turn_is_shown_with_its_calls():
    shown = [turn_text(message) for message in talk(call())]
    assert shown[0] == "user: the film"
    assert shown[1].startswith('assistant: {"type": "function", "id": "c1", "function": {"name": "very"')
    assert shown[2] == "tool (very): bad"
