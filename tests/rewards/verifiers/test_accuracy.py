"""math-verify as a reward: right, wrong, unreadable, and what would take it for ever."""

import pytest

pytest.importorskip("math_verify")

from nonpareil.errors import DataError
from nonpareil.records import Prompt, ScoreRequest
from nonpareil.rewards.verifiers.accuracy import Accuracy


def judged(verifier: Accuracy, gold, *completions: str) -> list[float | None]:
    rows = len(completions)
    request = ScoreRequest(["p"] * rows, list(completions), [[1]] * rows, {"answer": [gold] * rows})
    return verifier.score(request).values


@pytest.fixture(scope="module")
def accuracy():
    verifier = Accuracy(timeout=2)
    yield verifier
    verifier.release()


@pytest.fixture(scope="module")
def lenient():
    verifier = Accuracy(timeout=20, read="any")
    yield verifier
    verifier.release()


def test_right_and_wrong(accuracy):
    right = [
        r"\boxed{2}",
        r"so $x$ and \boxed{2.0}",
        "The answer is $2$.",
        r"<think>\boxed{3}</think>\boxed{2}",
    ]
    wrong = [r"\boxed{3}", "", "2", r"\boxed{2x}", r"\boxed{}", r"<think>\boxed{2}", r"\boxed{2}</think>"]
    assert judged(accuracy, "2", *right, *wrong) == [1] * 4 + [0] * 7
    assert (
        judged(accuracy, r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{50\%}", r"\boxed{\frac{2}{4}}") == [1] * 3
    )
    assert judged(accuracy, "x+1", r"\boxed{1+x}", r"\boxed{x+2}") == [1, 0]
    assert judged(accuracy, "She has 3. #### 1,000", r"\boxed{1000}", r"\boxed{3}") == [1, 0]
    assert judged(accuracy, 72, r"\boxed{72}") == judged(accuracy, "1e5", r"\boxed{100000}") == [1]


def test_a_row_without_mathematics_is_null_for_all(accuracy):
    request = ScoreRequest(["p"] * 3, [r"\boxed{pairs}"] * 3, [[1]] * 3, {"answer": ["Paris", None, "  "]})
    scores = accuracy.score(request)
    assert scores.values == [None] * 3
    assert scores.failures[0] == "the answer 'Paris' is no mathematics that math-verify reads"
    assert scores.failures[1] == scores.failures[2] == "the column 'answer' holds no answer"


@pytest.mark.parametrize("answer", [["2"], {"value": 2}, True])
def test_answers_that_no_row_could_be_judged_by_are_refused_before_anything_is_drawn(answer):
    prompts = [Prompt("a", "p", [1], {"answer": answer}), Prompt("b", "p", [1], {"answer": None})]
    with pytest.raises(DataError, match=r"'answer' has no number and no text in any row, but .*; give each"):
        Accuracy().check_prompts(prompts, 8, None)
    Accuracy().check_prompts([*prompts, Prompt("c", "p", [1], {"answer": 2})], 8, None)


def test_the_rows_answer_is_read_however_it_is_written(accuracy):
    for gold in ("$7$", "$$7$$", r"\(7\)", "The sum is $7$ apples.", "7."):
        assert judged(accuracy, gold, r"\boxed{7}", r"\boxed{8}") == [1, 0], gold
    assert judged(accuracy, r"\frac12", r"\boxed{\frac{1}{2}}", r"\boxed{\frac12}", r"\boxed{0.5}") == [1] * 3
    assert judged(accuracy, r"2\sqrt3", r"\boxed{2\sqrt{3}}", r"\boxed{2\sqrt3}") == [1, 1]
    assert judged(accuracy, "1 1/2", r"\boxed{1.5}", r"\boxed{1 1/2}", r"\boxed{1}") == [1, 1, 0]
    assert judged(accuracy, r"12\,345", r"\boxed{12345}", r"\boxed{357}") == [1, 0]
    assert judged(accuracy, "357", r"\boxed{12\,345}") == [0]


def test_what_would_make_every_other_way_to_write_it_wrong_is_null(accuracy):
    assert judged(accuracy, "10 dollars", r"\boxed{10}") == [None]
    assert judged(accuracy, "10^-3", r"\boxed{10^{-3}}") == [None]
    assert judged(accuracy, r"\text{even}", r"\boxed{\text{even}}", r"\boxed{\text{odd}}") == [1, 0]


def test_of_a_solution_the_box_is_the_answer_whatever_formula_stands_before_it(accuracy):
    for gold in (
        r"We have $2+2=4$, so the answer is \boxed{4}.",
        r"Of $x=2$ follows $\boxed{4}$.",
        r"In triangle $abc$ and $3$: \[ \boxed{4} \]",
    ):
        assert judged(accuracy, gold, r"\boxed{4}", r"\boxed{2}", r"\boxed{3}") == [1, 0, 0], gold


def test_numbers_that_stand_apart_are_not_added(accuracy):
    """math-verify reads 1 5 as a mixed number without its fraction, which is 6."""
    assert judged(accuracy, "6", r"\boxed{1 5}", r"\boxed{1\ 5}", r"The answer is $1~5$.") == [0] * 3
    assert judged(accuracy, "1, 5", r"\boxed{1 5}", r"\boxed{1 6}") == [1, 0]
    assert judged(accuracy, "12345", r"\boxed{12 345}", r"\boxed{12~345}", r"\boxed{357}") == [1, 1, 0]
    assert judged(accuracy, "1.5", r"\boxed{1\ 1/2}", r"\boxed{1 \frac{1}{2}}", r"\boxed{2 1/2}") == [1, 1, 0]
    assert judged(accuracy, "5.5", r"\boxed{5 1/2 \text{ feet}}", r"\boxed{5 1/20}") == [1, 0]
    assert judged(accuracy, "5 1/2 feet", r"\boxed{5.5}", r"\boxed{3}") == [1, 0]
    assert judged(accuracy, r"In 1999 5 had \boxed{3}", r"\boxed{3}") == [1]
    for gold in ("1 2 3", "12 345", r"3\ 4"):
        assert judged(accuracy, gold, r"\boxed{6}", r"\boxed{357}", r"\boxed{7}") == [None] * 3, gold
    assert judged(accuracy, "7", r"\boxed{3(4)}") == [1]  # known of math-verify, and left so


def test_of_units_that_make_other_ways_to_write_it_wrong_no_answer_is_judged(accuracy):
    assert judged(accuracy, "5 cm", r"\boxed{5}", r"\boxed{5\text{ cm}}") == [1, 1]
    for gold in ("12 cm^2", "12 km/h"):
        assert judged(accuracy, gold, r"\boxed{12}", r"\boxed{12\text{ cm}^2}") == [None, None], gold


def test_several_boxes_are_no_guesses(accuracy):
    assert judged(accuracy, "2", r"\boxed{1} or \boxed{2} or \boxed{3}") == [0]
    assert judged(accuracy, "1, 2", r"\boxed{1} and \boxed{2}") == [1]


def test_what_it_reads_out_of_plain_text(lenient):
    """Known of math-verify, and why `any` is not the default: a part of an expression is taken for the answer."""
    assert judged(lenient, "2", "2", "I think 3, or 2", "2x", "(1, 2)") == [1, 1, 1, 1]
    assert judged(lenient, "2", "I think 2, or 3", "none") == [0, 0]
    assert judged(lenient, "(1, 2)", "(1, 2)", r"\boxed{(1, 2)}", r"\boxed{(2, 1)}") == [0, 1, 0]
    assert judged(lenient, "50%", "50%", "0.5", "50") == [1, 1, 1]


def test_hostile_completions_end_in_time_and_are_null_where_they_could_not_be_read(accuracy):
    values = judged(
        accuracy,
        "2",
        r"\boxed{9^{9^{9}}}",
        r"\boxed{" + "(" * 3000 + "2" + ")" * 3000 + "}",
        "a" * 10**6,
        "$" * 10**5,
        r"\boxed{2" * 2000,
        "\x00\ud800",
        r"\boxed{2}",
    )
    assert values == [None, None, 0, 0, 0, 0, 1]
