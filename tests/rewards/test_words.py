"""What a reward model reads of a conversation has every word of it, or that is said before anything is drawn."""

import logging

import pytest

from nonpareil.errors import DataError, ModelError
from nonpareil.records import Message, Prompt
from nonpareil.rewards.models.encoding import RewardEncoder
from nonpareil.rewards.models.text_options import TextOptions
from tests.rewards.conftest import CHAT_TEMPLATE, make_tokenizer

SYSTEM = {"role": "system", "content": "be brief"}
USER = {"role": "user", "content": "  was the film\ngood? "}
TALK = [SYSTEM, USER, {"role": "assistant", "content": "<think>long</think>\n\nyes"}, USER]
EACH = "{% for m in messages %}<{{ m['role'] }}> "
KEEPS = {
    "as it is": CHAT_TEMPLATE,
    "trimmed": EACH + "{{ m['content'] | trim }}\n{% endfor %}",
    "with a system prompt of its own": "You are helpful.\n" + CHAT_TEMPLATE,
    "on one line": EACH + "{{ m['content'].split() | join(' ') }} {% endfor %}",
}
NO_SYSTEM = EACH.replace("messages", "messages if m['role'] != 'system'") + "{{ m['content'] }}{% endfor %}"
LAST_ONLY = "{{ messages[-2]['content'] }} {{ messages[-1]['content'] }}"
CUT = EACH + "{{ m['content'][:10] }}{% endfor %}"
TURNED = "{% for m in messages | reverse %}{{ m['content'] }} {% endfor %}"
NO_ANSWER = EACH.replace("messages", "messages[:-1]") + "{{ m['content'] }}{% endfor %}"
NO_THOUGHT = EACH + "{{ m['content'].split('</think>')[-1] }} {% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE


def check(template: str, *talks: list[Message], name: str = "rm", policy: str | None = CHAT_TEMPLATE) -> None:
    tokenizer, policys = make_tokenizer(), make_tokenizer()
    tokenizer.chat_template, policys.chat_template = template, policy
    prompts = [Prompt(f"p{place}", talk, [1]) for place, talk in enumerate(talks)]
    RewardEncoder(tokenizer, name, TextOptions(max_length=10_000)).check_prompts(prompts, 8, policys)


@pytest.mark.parametrize("template", KEEPS.values(), ids=KEEPS)
def test_spaces_and_words_of_its_own_are_the_templates_to_choose(template, caplog) -> None:
    check(template, [USER], [SYSTEM, USER], TALK, [USER, {"role": "assistant", "content": "I think"}])
    assert not [record for record in caplog.records if "template" in record.message]


@pytest.mark.parametrize(
    ("template", "talks", "said"),
    [
        (
            NO_SYSTEM,
            [[USER], [SYSTEM, USER]],
            "does not write all that 'system' says in prompt p1 ('be brief')",
        ),
        (LAST_ONLY, [[USER], TALK], "does not write all that 'system' says in prompt p1 ('be brief')"),
        (
            CUT,
            [[{"role": "user", "content": "short"}], [USER]],
            "that 'user' says in prompt p1 ('  was the film",
        ),
        (TURNED, [[USER]], "does not write all that 'assistant' says"),
        (NO_ANSWER, [[USER]], "does not write all that 'assistant' says in prompt p0 ('an answer')"),
    ],
)
def test_a_template_that_loses_words_is_refused(template, talks, said) -> None:
    with pytest.raises(DataError) as refusal:
        check(template, *talks)
    assert said in str(refusal.value)
    assert "set its tokenizer's chat_template to one that writes every message" in str(refusal.value)


def test_words_that_the_template_has_itself_do_not_stand_for_a_message() -> None:
    """The system message is `user`, which the template writes before every turn."""
    talk = [{"role": "system", "content": "user"}, USER]
    with pytest.raises(
        ModelError, match=r"leaves out what 'system' says in a conversation of \['system', 'user'"
    ):
        check(NO_SYSTEM, talk)


def test_words_that_the_policy_never_reads_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"policy's chat template leaves out what 'system' says .* reward model 'rm'"
    ):
        check(CHAT_TEMPLATE, [USER], [SYSTEM, USER], policy=NO_SYSTEM)
    check(CHAT_TEMPLATE, [USER], policy=NO_SYSTEM)
    check(CHAT_TEMPLATE, TALK, policy=NO_THOUGHT)  # of earlier turns alone


@pytest.mark.parametrize("overlong", ["error", "truncate"])
def test_it_is_asked_whatever_the_length(overlong) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    encoder = RewardEncoder(tokenizer, "rm", TextOptions(overlong=overlong))
    with pytest.raises(DataError, match="'be brief'"):
        encoder.check_prompts([Prompt("p", [SYSTEM, USER], [1])], 8, tokenizer)
    encoder.check_prompts([Prompt("p", "a string goes through no template", [1])], 8, tokenizer)


def test_reasoning_that_is_left_out_is_told_once_where_the_policy_may_reason(caplog) -> None:
    caplog.set_level(logging.WARNING)
    check(NO_THOUGHT, [USER], TALK, name="not of a policy that does not reason")
    assert not caplog.records
    for _ in range(2):
        check(NO_THOUGHT, [USER], TALK, name="thoughtless", policy=CHAT_TEMPLATE + "{# </think> #}")
    [told] = [record.message for record in caplog.records]
    assert told.startswith(
        "the chat template of reward model 'thoughtless' leaves out what an answer says before </think>"
    )
    check(CHAT_TEMPLATE, [USER], TALK, name="thoughtful", policy=CHAT_TEMPLATE + "{# </think> #}")
    assert len(caplog.records) == 1


def test_a_template_that_writes_the_date_is_told(caplog) -> None:
    caplog.set_level(logging.WARNING)
    check(DATED, [USER], name="dated")
    [told] = [record.message for record in caplog.records]
    assert "reward model 'dated' writes the date: a text may score otherwise on another day" in told
