"""reasoning-gym's generators: their problems as rows, their verifiers as rewards, and those that are unsafe."""

import json

import pytest

pytest.importorskip("reasoning_gym")

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Prompt, ScoreRequest
from nonpareil.rewards.verifiers import Verifier, reasoning_gym_rows
from nonpareil.rewards.verifiers.base import rows_of
from nonpareil.rewards.verifiers.gym_rows import runs_text
from nonpareil.rewards.verifiers.reasoning_gym import ReasoningGym

RUN_WHAT_THEY_READ = {
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication"),
    *("puzzle24", "simple_integration", "spiral_matrix", "string_insertion"),  # the model's answer
    *("bitwise_arithmetic", "number_sorting"),  # the row's
}


def request_of(row: dict, *completions: str) -> ScoreRequest:
    rows = len(completions)
    return ScoreRequest(["p"] * rows, list(completions), [[1]] * rows, {"entry": [row["entry"]] * rows})


def judged(row: dict, *completions: str, **settings) -> list[float | None]:
    """By the rule alone, here: a process of its own is for what is hostile."""
    verifier = ReasoningGym(**settings)
    verifier.prepare()
    return [value for value, _ in Verifier.judge_all(verifier, rows_of(request_of(row, *completions)))]


def test_rows_are_a_dataset_and_the_same_for_a_seed():
    rows = reasoning_gym_rows({"chain_sum": 2, "leg_counting": {"max_animals": 3}}, 12, seed=4)
    assert rows == reasoning_gym_rows({"chain_sum": 2, "leg_counting": {"max_animals": 3}}, 12, seed=4)
    assert rows != reasoning_gym_rows({"chain_sum": 2, "leg_counting": {"max_animals": 3}}, 12, seed=5)
    names = [json.loads(row["entry"])["name"] for row in rows]
    assert {*names} == {"chain_sum", "leg_counting"}
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    text = reasoning_gym_rows("chain_sum", 1, min_terms=2, instruction=None, conversational=False)[0]
    assert isinstance(text["prompt"], str)
    assert json.loads(text["entry"])["config"] == {"min_terms": 2}


def test_rows_of_another_seed_are_other_problems_to_evaluate_on():
    """A generator's problem i is drawn by seed + i: seeds 0 and 1 would share 99 problems of 100."""
    mixture = {"chain_sum": {"min_terms": 5, "min_digits": 3}, "products": {"min_digits": 4, "max_digits": 5}}
    made = [reasoning_gym_rows(mixture, 100, seed=seed) for seed in (0, 1, 2, 42, -1)]
    asked = [{row["prompt"][-1]["content"] for row in rows} for rows in made]
    assert [len(questions) for questions in asked] == [100] * 5
    assert len(set.union(*asked)) == 500


def test_right_wrong_and_in_part():
    row = reasoning_gym_rows("chain_sum", 1, seed=1)[0]
    right = f"<think>\n5</think> So <answer> {row['answer']} </answer>"
    sentence = f"<answer>The answer is {row['answer']}.</answer>"
    assert judged(row, right, "<answer>x</answer>", row["answer"], "", sentence) == [1, 0, 0, 0, 0]
    *_, in_part = judged(row, right, sentence, credit="partial")
    assert in_part == pytest.approx(len(row["answer"]) / len(f"The answer is {row['answer']}."))
    assert judged(row, f"Well.\n{row['answer']}\n\n", f"{row['answer']}\nYes", read="last_line") == [1, 0]
    assert judged(row, f" {row['answer']}\n", right, read="whole") == [1, 0]


def test_every_verifier_that_runs_text_is_refused_by_name():
    from reasoning_gym.factory import DATASETS

    assert {name for name, (cls, _) in DATASETS.items() if runs_text(cls)} == RUN_WHAT_THEY_READ
    for name in RUN_WHAT_THEY_READ:
        with pytest.raises(ConfigError, match=rf"the verifier of '{name}' is unsafe"):
            reasoning_gym_rows(name, 1)


def test_a_hostile_answer_is_never_run(tmp_path):
    from reasoning_gym.factory import create_dataset

    theirs = create_dataset("n_queens", size=1, seed=1)[0]
    entry = json.dumps({"name": "n_queens", "config": {}, **theirs}, default=str)
    with pytest.raises(ConfigError, match="'n_queens' is unsafe"):
        ReasoningGym().check_prompts([Prompt("a", "p", [1], {"entry": entry})], 8, None)
    mark = tmp_path / "was-here"
    attack = f"<answer>[open({str(mark)!r}, 'w')]</answer>"
    assert judged({"entry": entry}, attack) == [None]
    verifier = ReasoningGym(timeout=30)
    hostile = [attack, "<answer>" + "9" * 10**6 + "</answer>", "<answer>1e999999999</answer>", "\x00\ud800"]
    assert verifier.score(request_of(reasoning_gym_rows("chain_sum", 1)[0], *hostile)).values == [0] * 4
    verifier.release()
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("game_of_life_halting", r"gives its own answer 1 and 'no answer' 1"),
        ("propositional_logic", r"gives its own answer 0 and"),
        ("prime_factorization", r"fails on 'no answer'"),
    ],
)
def test_a_generator_that_does_not_tell_right_from_wrong_is_refused(name, said):
    with pytest.raises(DataError, match=said):
        reasoning_gym_rows(name, 1)


def test_bad_requests_are_refused():
    with pytest.raises(ConfigError, match=r"no generator 'chain_sums'; did you mean 'chain_sum'"):
        reasoning_gym_rows("chain_sums", 1)
    with pytest.raises(
        ConfigError, match=r"'chain_sum' has no setting 'min_term'; did you mean 'min_terms'\?"
    ):
        reasoning_gym_rows("chain_sum", 1, min_term=3)
    with pytest.raises(ConfigError, match=r"'chain_sum' with \{'min_terms': 0, .*min_terms must be positive"):
        reasoning_gym_rows("chain_sum", 1, min_terms=0)
    with pytest.raises(ConfigError, match=r"the weight of 'chain_sum'=0 must be above 0"):
        reasoning_gym_rows({"chain_sum": 0}, 1)
    with pytest.raises(DataError, match=r"'entry' of prompt a holds no problem"):
        ReasoningGym().check_prompts([Prompt("a", "p", [1], {"entry": "{}"})], 8, None)
