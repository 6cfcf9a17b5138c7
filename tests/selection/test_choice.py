"""What is written, read and drawn: rules by name, answers and similarities of texts, choices by a key."""

import importlib.util
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.selection import RULES, best_first, candidates_of, choose, likeliest, parse_rule, parse_rules
from nonpareil.selection.texts import answer_numbers, answer_of, pairwise

needs_chrf = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs sacrebleu")


@pytest.mark.parametrize(
    "written", ["best_of_n", "soft:temperature=0.5", "likelihood:weight=1.0,per_token=true", "poisson:n=2.5"]
)
def test_a_rule_is_written_as_it_is_read(written):
    assert str(parse_rule(written)) == written
    assert parse_rule(f" {written.replace(',', ' , ')} ") == parse_rule(written)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("sof", "rules='sof' is no rule; did you mean 'soft'?"),
        ("", "rules='' is no rule; there are: best_of_n, soft"),
        ("soft", "temperature is missing; write soft:temperature="),
        ("soft:temp", "'temp' is no parameter=value"),
        ("soft:temperature=", "is no parameter=value"),
        ("soft:temperatur=1", "has no parameter 'temperatur'; did you mean 'temperature'?"),
        ("mbr:n=1", "mbr has no parameter 'n', and has none"),
        ("soft:temperature=x", "temperature='x' must be a finite number of at least 0"),
        ("best_of_n:n=0", "n=0 must be at least 1"),
        ("best_of_n:n=2.5", "n='2.5' must be a whole number"),
        ("best_of_n:n=2,n=3", "n is given twice"),
        ("best_of_majority:alpha=1.5", "must be at least 0 and at most 1"),
    ],
)
def test_a_bad_rule_is_named_with_its_remedy(written, said):
    with pytest.raises(ConfigError, match=r"^rules=") as caught:
        parse_rules(["majority", written])
    assert said in str(caught.value)


def test_a_rule_is_given_once():
    with pytest.raises(ConfigError, match="given twice"):
        parse_rules(["soft:temperature=1", "soft:temperature=1.0"])


def test_reading_a_rule_is_light():
    code = (
        "import sys; from nonpareil.selection import parse_rule; parse_rule('soft:temperature=1'); "
        "assert not {'torch', 'numpy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rule_without_what_it_reads_says_so():
    given = candidates_of([[1.0, 0.0]])
    for name in ("majority", "mbr", "likelihood:weight=1", "length:weight=1"):
        with pytest.raises(DataError, match="which the completions lack"):
            parse_rule(name).law(given)
    none_known = candidates_of([[1.0, 0.0]], ["logprobs"], token_logprobs=[[None, []]])
    with pytest.raises(DataError, match="reads logprobs"):
        parse_rule("likelihood:weight=1").law(none_known)


def test_choices_follow_the_law_and_their_key():
    law = [0.0, 0.25, 0.75, 0.0]
    drawn = [choose(law, f"seed {place}") for place in range(2000)]
    assert drawn == [choose(law, f"seed {place}") for place in range(2000)]
    counts = Counter(drawn)
    assert {*counts} == {1, 2}
    assert counts[2] / 2000 == pytest.approx(0.75, abs=0.04)
    assert {likeliest([0.2, 0.4, 0.4], key) for key in range(30)} == {1, 2}
    assert choose([0.0, 0.0], 1) is None
    assert likeliest(torch.zeros(3), 1) is None


def test_best_first_gives_different_ones_and_no_null():
    given = candidates_of([[0.1, None, 0.9, 0.5, 0.5]])
    orders = {tuple(best_first(parse_rule("best_of_n"), given, 5, key)) for key in range(30)}
    assert orders == {(2, 3, 4, 0), (2, 4, 3, 0)}
    assert best_first(parse_rule("best_of_n"), given, 1, 7) == [2]
    random_pair = best_first(parse_rule("best_of_n:n=3"), given, 4, 1)
    assert sorted(random_pair) == [0, 2, 3, 4]  # where fewer than n are left, by reward
    assert best_first(parse_rule("soft:temperature=1"), candidates_of([[None, None]]), 2, 0) == []
    voted = candidates_of([[1, 1, 9]], ["answers"], texts=[["so 4", "is 4", "is 5"]])
    assert best_first(parse_rule("majority"), voted, 3, 0)[0] in (0, 1)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>maybe 3</think>It is 1,234.50.", "1234.5"),
        (r"so \boxed{7} or \boxed{ \frac{1}{2} }, that is 0.5", r"\frac{1}{2}"),
        (r"\boxed{12", "12"),
        ("Reasoning 5\n#### 1,000\n", "1000"),
        ("about 2.0 apples", "2"),
        ("-3/4", "-3/4"),
        ("nothing at all", None),
        ("", None),
    ],
)
def test_final_answers(text, answer):
    assert answer_of(text) == answer


def test_answers_of_a_prompt():
    assert answer_numbers(["is 4", "4.0!", "no", "it's 5"]) == [0, 0, -1, 1]
    assert answer_numbers([" a  b", "a b", "c", " "], "whole") == [0, 0, 1, -1]
    with pytest.raises(ConfigError, match="answers='boxed'"):
        answer_numbers(["1"], "boxed")


def test_similarities():
    table = pairwise(["a b", "b c", "a b"], "words")
    third = 1 / 3
    assert torch.allclose(table, torch.tensor([[1, third, 1], [third, 1, third], [1, third, 1]]).double())
    lengths = pairwise(["a", "bcd"], lambda guess, other: len(guess) / len(other))
    assert torch.allclose(lengths, torch.tensor([[1, 1 / 3], [3, 1]]).double())
    with pytest.raises(DataError, match="no finite number"):
        pairwise(["a", "b"], lambda guess, other: math.nan)
    with pytest.raises(ConfigError, match="similarity='chr'"):
        pairwise(["a"], "chr")


@needs_chrf
def test_chrf_is_sacrebleus():
    from sacrebleu import sentence_chrf

    texts = ["the film was good", "the film was bad", "dull"]
    table = pairwise(texts)
    for guess, scores in zip(texts, table.tolist(), strict=True):
        for other, score in zip(texts, scores, strict=True):
            assert score == pytest.approx(sentence_chrf(guess, [other]).score / 100)


def test_every_rule_is_named_as_its_function():
    assert RULES
    for name, cls in RULES.items():
        module = __import__(f"nonpareil.selection.{cls.module}", fromlist=[name])
        assert callable(getattr(module, name))
