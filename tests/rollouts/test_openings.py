"""What of an answer the prompt writes is known where it is rendered, and kept with the groups."""

from types import SimpleNamespace

import pytest

from nonpareil.commands.distill.rehearsal import try_rewards
from nonpareil.records import Draws, Group, ScoreRequest
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rewards.skipped_tokens import without_tokens
from nonpareil.rollouts.openings import Openings
from nonpareil.rollouts.prompts import tokenize_prompts
from nonpareil.rollouts.store import read_shard, read_table, to_table, write_shard, write_table
from nonpareil.training.stored_folder import _with_openings, _with_token_ids
from tests.rollouts.conftest import make_tokenizer

PLAIN = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEMPLATES = {  # with what a prompt has behind the assistant's header
    "nothing": (PLAIN, ""),
    "a thought begun": (PLAIN.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"), "<think>\n"),
    "an empty thought": (
        PLAIN.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif"),
        "<think>\n\n</think>\n\n",
    ),
    "empty thoughts in earlier answers": (
        PLAIN.replace(
            "{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
        ),
        "",
    ),
    "no header but a space": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
        "",
    ),
    "one that takes no answer": (
        "{{ messages[0].content }}{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}",
        None,
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_opening_is_what_stands_behind_the_assistants_header(name):
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template, opening = TEMPLATES[name]
    assert Openings(tokenizer, {}).of([{"role": "user", "content": "why \n"}]) == opening


def test_an_answer_that_is_continued_begins_with_its_own_words():
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = TEMPLATES["a thought begun"][0]
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "<think>Well"}]
    rows = [{"prompt": turns}, {"prompt": turns[:1]}, {"prompt": "why"}]
    prompts = tokenize_prompts(rows, tokenizer)
    assert [prompt.opening for prompt in prompts] == ["<think>Well", "<think>\n", None]


def test_an_earlier_answer_is_no_opening_where_a_template_begins_answers_otherwise_than_it_writes_them():
    """As gpt-oss's, whose answers have a channel that the policy is to choose."""
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = PLAIN.replace("{{ m.role }}\n", "{{ m.role }}<|channel|>final<|message|>")
    talk = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "<think>Well"}]
    question = {"role": "user", "content": "so"}
    openings = Openings(tokenizer, {})
    assert openings.of([question]) is openings.of([*talk, question]) is None
    assert openings.of(talk) == "<think>Well"
    tokenizer.chat_template = PLAIN
    assert Openings(tokenizer, {}).of([*talk, question]) == ""


def group_of(prompt, opening: str | None) -> Group:
    return Group(
        "a", prompt, [1], ["x", "y"], [[1], [2]], ["stop", "stop"], [[-1.0], [-1.0]], opening=opening
    )


def test_a_shard_keeps_it_and_older_ones_have_none(tmp_path):
    chat = [{"role": "user", "content": "p"}]
    path = write_shard(tmp_path / "a.parquet", [group_of(chat, "<think>\n")])
    assert read_shard(path)[0].opening == "<think>\n"
    assert read_shard(path)[0].columns == {}
    assert ScoreRequest.of(read_shard(path)).openings == ["<think>\n"] * 2
    older = to_table([group_of(chat, None)]).drop_columns(["prompt/opening"])
    write_table(tmp_path / "b.parquet", older)
    assert read_shard(tmp_path / "b.parquet")[0].opening is None
    text = write_shard(tmp_path / "c.parquet", [group_of("p", None)])
    assert "prompt/opening" not in read_table(text).column_names


def test_a_datasets_own_column_of_that_name_stays_its_own(tmp_path):
    group = group_of([{"role": "user", "content": "p"}], "<think>")
    group.columns = {"prompt/opening": "e4", "opening": "d4"}
    stored = read_shard(write_shard(tmp_path / "a.parquet", [group]))[0]
    assert (stored.columns, stored.opening) == (group.columns, "<think>")


def test_special_tokens_that_no_reward_reads_are_out_of_it_too():
    group = Group.of(
        tokenize_prompts([{"prompt": "p"}], make_tokenizer())[0],
        Draws(["<t>x"], [[1]], ["stop"], [[-1.0]]),
    )
    group.opening = "<t>So"
    request = without_tokens(ScoreRequest.of([group]), ["<t>"])
    assert (request.openings, request.completions) == (["So"], ["x"])


def test_groups_that_lack_openings_are_given_them_to_be_trained_on():
    """A server's groups are text alone, and those of earlier versions say nothing of openings."""
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template, opening = TEMPLATES["a thought begun"]
    policy = SimpleNamespace(tokenizer=tokenizer)
    chat = [{"role": "user", "content": "why"}]
    drawn = (["b"], [[5]], ["stop"], [[-1.0]])
    groups = [Group("0", chat, [], *drawn), Group("1", "why", [1], *drawn), Group("2", chat, [1], *drawn)]
    served = _with_token_ids(groups[:1], policy, {})
    assert served[0].opening == opening == "<think>\n"
    assert served[0].prompt_token_ids
    assert [group.opening for group in _with_openings(groups, policy, {})] == [opening, None, opening]


def test_a_dry_runs_made_up_completion_follows_its_prompts_opening():
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template, opening = TEMPLATES["a thought begun"]
    prompts = tokenize_prompts([{"prompt": [{"role": "user", "content": "why"}]}], tokenizer)

    def opened(completions, openings, **columns):
        return [float(len(one)) for one in openings]

    reward = CombinedReward([FunctionReward(opened)])
    config = SimpleNamespace(max_completion_length=8)
    told, warnings = try_rewards(reward, prompts, config, tokenizer, steps=1, evaluated=False)
    assert (told["opened"]["scores"], warnings) == ([float(len(opening))], [])
