"""Which rewards tell no completion of a prompt from another."""

import pytest

from nonpareil.constant_rewards import RewardSpread, tell_constant
from nonpareil.rewards.verifiers.names import VERIFIERS


@pytest.mark.parametrize(
    ("groups", "constant"),
    [
        ([[1.0, 1.0], [2.0, 2.0]], True),  # it varies between prompts, where nothing is chosen
        ([[1.0, 1.0], [2.0, 2.5]], False),
        ([[0.0, None, 0.0], [None, None]], True),
        ([[1.0], [2.0], []], False),  # no two to compare: nothing is known
        ([], False),
    ],
)
def test_a_reward_is_constant_where_every_group_that_could_differ_ties(groups, constant):
    spread = RewardSpread()
    spread.add("reward", groups)
    assert spread.constant() == (["reward"] if constant else [])


def test_it_is_told_once_and_from_enough_groups_on(capsys):
    spread = RewardSpread()
    for _ in range(3):
        spread.add_all([{"tied": [1.0, 1.0], "varied": [0.0, 1.0]}])
        spread.tell(["tied", "varied", "unknown"], "a folder", fewest=2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "reward 'tied' is equal for all completions of a prompt, at each of the 2 prompts" in err
    assert 'completion[-1]["content"]' in err


def test_accuracy_that_ties_says_how_plain_answers_are_read(capsys):
    spread = RewardSpread()
    spread.add("accuracy", [[0.0, 0.0]])
    spread.tell(["accuracy"], "a folder of plain answers")
    assert "accuracy:read=any" in capsys.readouterr().err


def test_no_verifier_that_ties_is_taken_for_a_function_of_the_users(capsys):
    for name in VERIFIERS:
        tell_constant(name, 4, "a folder of verdicts")
        said = capsys.readouterr().err
        assert f". {name} " in said, name
        assert "len(completion)" not in said, name
