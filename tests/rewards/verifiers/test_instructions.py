"""`instructions`: IFEval's checkers, with what datasets makes of their arguments."""

import random
from typing import Any

import pytest

pytest.importorskip("if_verifiable")
pytest.importorskip("punkt")

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, ScoreRequest
from nonpareil.rewards.verifiers.base import rows_of
from nonpareil.rewards.verifiers.instructions import Instructions
from nonpareil.rewards.verifiers.names import make_verifier

NO_COMMA, SENTENCES = "punctuation:no_comma", "length_constraints:number_sentences"
CAPITALS, LANGUAGE = "change_case:capital_word_frequency", "language:response_language"
THREE = {"relation": "at least", "num_sentences": 3.0, "keywords": None}
BOTH = [NO_COMMA, SENTENCES], [{"num_sentences": None}, THREE]
TITLE = ["detectable_format:title"], [{}]

ROWS: list[tuple[str, Any, Any, float | None]] = [
    ("One. Two. Three.", *BOTH, 1),
    ("One, two. Dr. Who.", *BOTH, 0),
    ("One, two. Three. Four.", *BOTH, 0),
    ("<think>One, two.</think>One. Two. Three.", *BOTH, 1),
    ("<think>One. Two. Three.", *BOTH, 0),
    ("", *BOTH, 0),
    ("One. Two. Three.", '["punctuation:no_comma"]', "[{}]", 1),
    ("One. Two. Three.", BOTH[0], {"relation": [None, "at least"], "num_sentences": [None, 3]}, 1),
    ("ALL of IT IS", [CAPITALS], [{"capital_frequency": 3, "capital_relation": "at least"}], 1),
    ("Das ist ein schöner Tag und wir gehen jetzt.", [LANGUAGE], [{"language": "de"}], 1),
    ("12 34 !!", [LANGUAGE], [{"language": "de"}], None),  # would count as German
    ("This is an English sentence.\n12 34 !!", [LANGUAGE], [{"language": "de"}], 0),  # read whole alone
    ("x", [], [], None),
    ("x", ["keywords:existence"], [{"keywords": None}], None),  # the checker would draw some
    ("<<A song>>", *TITLE, 1),
    ("<<" * 100_000, *TITLE, None),  # takes minutes
]


def test_right_wrong_unknown_and_hostile_answers() -> None:
    answers, names, arguments, values = map(list, zip(*ROWS, strict=True))
    columns = {"instruction_id_list": names, "kwargs": arguments}
    request = ScoreRequest(["Write."] * len(ROWS), answers, [[1]] * len(ROWS), columns)
    verifier = Instructions(timeout=2)
    scores = verifier.score(request)
    verifier.release()
    assert scores.values == values
    reasons = [reason for reason in scores.failures if reason]
    assert "language of the answer cannot be told" in reasons[0]
    assert reasons[1] == "the column 'instruction_id_list' holds no instruction"
    assert "'keywords:existence' lacks keywords" in reasons[2]
    assert reasons[3] == "timed out after 2 s"


def test_shares_and_the_loose_reading() -> None:
    answers = ["One, two. Three. Four.", "Sure, here it is:\nOne. Two. Three."]
    columns = {"instruction_id_list": [BOTH[0]] * 2, "kwargs": [BOTH[1]] * 2}
    request = ScoreRequest(["Write."] * 2, answers, [[1]] * 2, columns)
    made = make_verifier("instructions:score_by=fraction,reading=loose")
    assert isinstance(made, Instructions)
    made.prepare()  # here, not in its process, which takes seconds to start
    assert [made.judge(row) for row in rows_of(request)] == [0.5, 1]


def refused(names: Any, arguments: Any) -> str:
    columns = {"instruction_id_list": names, "kwargs": arguments}
    with pytest.raises(DataError) as raised:
        Instructions().check_prompts([Prompt("p-7", "Write.", [], columns)], 10, None)
    return str(raised.value)


def test_what_no_checker_takes_is_refused_before_anything_is_drawn() -> None:
    assert "prompt p-7: no instruction is called 'punctuation:no_coma'; did you" in refused(
        ["punctuation:no_coma"], [{}]
    )
    assert "'keywords:existence' lacks keywords" in refused(["keywords:existence"], [{"keywords": None}])
    assert "'punctuation:no_comma' does not take {'n': 1}" in refused([NO_COMMA], [{"n": 1}])
    assert "must hold 1 dicts" in refused([NO_COMMA], [{}, {}])
    assert "must hold dicts" in refused([NO_COMMA], ["x"])
    assert "no JSON" in refused("x", [{}])
    with pytest.raises(ConfigError, match="reads the column 'kwargs'"):
        Instructions().check_prompts([Prompt("p", "x", [], {"instruction_id_list": [NO_COMMA]})], 10, None)
    random.seed(7)
    first = random.random()
    random.seed(7)
    Instructions().check_prompts(
        [Prompt("p", "x", [], dict(zip(["instruction_id_list", "kwargs"], BOTH, strict=True)))], 10, None
    )
    assert random.random() == first
