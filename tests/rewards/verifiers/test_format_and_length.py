"""Rules that need no package: tags and lengths."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonpareil.records import ScoreRequest
from nonpareil.rewards.verifiers.final_answer import final_answer
from nonpareil.rewards.verifiers.format import Format
from nonpareil.rewards.verifiers.length import Length
from tests.rewards.verifiers.test_base import Row

CHAT = [{"role": "user", "content": "p"}]
TRL = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL | re.MULTILINE)
"""Of trl.rewards.think_format_reward."""


def verdict(style: str, completion: str, opening: str | None = "", prompt=CHAT) -> tuple:
    request = ScoreRequest([prompt], [completion], [[1]], {}, openings=[opening])
    scores = Format(style=style).score(request)
    return scores.values[0], scores.failures[0]


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " ", "<answer>"]), max_size=8).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_think_is_as_trls_reward(text):
    assert verdict("think", text)[0] == float(TRL.match(text) is not None)


@pytest.mark.parametrize(
    ("style", "text", "value"),
    [
        ("think_answer", "<think>a</think><answer>4</answer>", 1),
        ("think_answer", "<think>\na\n</think>\n\n<answer>\n4\n</answer>\n", 1),
        ("think_answer", "<think>a</think>so <answer>4</answer>", 0),
        ("think_answer", "<think>a</think><answer>4</answer> and more", 0),
        ("think_answer", "<think>a</think><answer> </answer>", 0),
        ("think_answer", "<think>a</think></think><answer>4</answer>", 0),
        ("think_answer", "<think>a</think><answer>4</answer><answer>5</answer>", 0),
        ("think_answer", "<think><answer>4</answer></think>", 0),
        ("answer", "it is <answer>4</answer>.", 1),
        ("answer", "</answer>4<answer>", 0),
        ("answer", "<answer></answer>", 0),
        ("answer", "4", 0),
    ],
)
def test_tags_stand_once_and_in_order(style, text, value):
    assert verdict(style, text) == (value, None)


def test_what_the_prompt_wrote_belongs_to_the_answer():
    assert verdict("think", "a</think>4", "<think>\n") == (1, None)
    assert verdict("think", "<think>a</think>4", "<think>\n") == (0, None)  # the tag twice
    assert verdict("think", "a</think>4", "") == (0, None)
    assert verdict("think", "a</think>4", None) == (None, "whether the prompt wrote <think> is not known")
    assert verdict("think", "a", None) == (0, None)  # as it is, and behind a tag
    assert verdict("think", "a</think>4", None, "solve it\n<think>\n") == (1, None)
    assert verdict("think", "a</think>4", None, "solve it") == (0, None)


@pytest.mark.parametrize("style", ["think", "think_answer", "answer"])
def test_hostile_texts_end_in_time(style):
    for text in (
        "<think>" * 10**5,
        "</think>" * 10**5,
        "<think>" + "a" * 10**6 + "<answer>" * 10**5,
        "\x00\ud800",
    ):
        assert verdict(style, text)[0] in (0, 1)


def test_the_answer_is_what_stands_behind_the_last_thought():
    def answer(completion, opening=""):
        return final_answer(Row(CHAT, completion, [], {}, opening))

    assert answer("<think>3</think>4") == answer("3</think>4", "<think>\n") == "4"
    assert answer("4") == answer("4", None) == "4"
    assert answer("a</think>b</think>c") == "c"
    assert answer("<think>3") == answer("3", "<think>\n") == ""
    assert answer("d", "So it is ") == "d"


def test_what_the_prompt_began_of_an_answer_is_a_part_of_it():
    prompt = [*CHAT, {"role": "assistant", "content": r"So \boxed{"}]
    for opening in (r"So \boxed{", None):
        assert final_answer(Row(prompt, "4}", [], {}, opening)) == r"So \boxed{4}"


def lengths(verifier: Length, *pairs: tuple[int, str | None]) -> list:
    ids = [[1] * count for count, _ in pairs]
    reasons = [reason for _, reason in pairs]
    return verifier.score(
        ScoreRequest(["p"] * len(pairs), ["x"] * len(pairs), ids, {}, finish_reasons=reasons)
    ).values


def test_length_counts_what_was_sampled_but_for_the_end_token():
    assert lengths(Length(at_most=4), (1, "stop"), (5, "stop"), (5, "length"), (9, "stop"), (12, None)) == [
        0,
        0,
        -0.25,
        -1,
        -2,
    ]
    assert lengths(Length(target=4), (5, "stop"), (3, "length"), (9, "stop")) == [0, -0.25, -1]
    scores = Length(target=4).score(ScoreRequest(["p"], ["words"], [[]], {}))
    assert scores.values == [None]
    assert scores.failures[0].startswith("the token ids are not known")
