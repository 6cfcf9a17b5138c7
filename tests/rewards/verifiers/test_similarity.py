"""chrF to a reference."""

import pytest

pytest.importorskip("sacrebleu")

from nonpareil.errors import DataError
from nonpareil.records import Prompt, ScoreRequest
from nonpareil.rewards.verifiers.similarity import Similarity


def test_chrf_of_what_follows_the_thoughts():
    from sacrebleu import sentence_chrf

    verifier = Similarity(timeout=20)
    texts = ["the cat sat", "the cat", "dog", "", "<think>dog</think>the cat sat", "x" * 10**5, "\x00\ud800"]
    request = ScoreRequest(["p"] * 7, texts, [[1]] * 7, {"reference": ["the cat sat"] * 7})
    values = verifier.score(request).values
    verifier.release()
    assert values[0] == values[4] == 1
    assert values[1] == pytest.approx(sentence_chrf("the cat", ["the cat sat"]).score / 100)
    assert 0 < values[1] < 1
    assert values[2:4] == [0, 0]
    assert values[5:] == [0, 0]
    several = ScoreRequest(["p"] * 2, ["dog", "dog"], [[1]] * 2, {"reference": [["cat", "dog"], None]})
    assert verifier.score(several).values == [1, None]
    verifier.release()


@pytest.mark.parametrize("value", [None, "", [], ["a", " "], 3])
def test_an_empty_reference_is_refused(value):
    prompts = [Prompt("a", "p", [1], {"reference": "x"}), Prompt("b", "p", [1], {"reference": value})]
    with pytest.raises(DataError, match=r"the column 'reference' of prompt b is"):
        Similarity().check_prompts(prompts, 8, None)
