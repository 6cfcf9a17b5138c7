"""Rewards of a group on one scale, against values worked out by hand."""

import math

import pytest

from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.rewards.standardized import standardized, standardized_sum


def test_less_the_mean_over_the_deviation() -> None:
    # 1, 2, 3: mean 2, squares 1 + 0 + 1 over n - 1 = 2, so a deviation of 1. The null has no part in it.
    assert standardized([1.0, None, 2.0, 3.0]) == pytest.approx([-1, None, 0, 1])
    # 0, 0, 0, 1: mean 1/4, squares 3/16 + 9/16 = 3/4 over 3, a deviation of 1/2.
    assert standardized([0.0, 0.0, 0.0, 1.0]) == pytest.approx([-0.5, -0.5, -0.5, 1.5])


@pytest.mark.parametrize("values", [[0.1] * 3, [0.1, None, 0.1, 0.1], [7.0], [None, 7.0], [None, None], []])
def test_what_does_not_vary_is_exactly_zero(values: list[float | None]) -> None:
    assert standardized(values) == [None if value is None else 0.0 for value in values]


def test_no_size_is_beyond_it() -> None:
    for size in (1e150, 1e-200, 1e-320):
        assert standardized([size, 2 * size, 3 * size]) == pytest.approx([-1, 0, 1])
    assert standardized([1e8, 1e8 + 0.1, 1e8 + 0.2]) == pytest.approx([-1, 0, 1], abs=1e-6)


def test_a_large_reward_no_longer_drowns_a_small_one() -> None:
    large, small = [100.0, 100.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]
    # Deviations: 100 / sqrt(3) and 1/2. Standardized: +-sqrt(3)/2, and -3/2 or 1/2.
    half = math.sqrt(3) / 2
    expected = [half - 1.5, half + 0.5, -half + 0.5, -half + 0.5]
    assert standardized_sum([large, small], [1.0, 1.0]) == pytest.approx(expected)
    assert standardized_sum([large, small], [2.0, 0.0]) == pytest.approx([2 * half] * 2 + [-2 * half] * 2)
    assert standardized_sum([large, small], [-1.0, 0.5])[0] == pytest.approx(-half - 0.75)


def test_equal_sums_tie_whatever_the_rounding() -> None:
    right, short = [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]  # of thirds, which no float holds
    assert len(set(standardized_sum([right, short], [1.0, 1.0]))) == 1
    assert len(set(standardized_sum([right, short], [0.3, 0.3]))) == 1


def test_a_null_of_one_reward_is_a_null_of_the_sum_and_no_more() -> None:
    rewards = CombinedReward(
        [FunctionReward(lambda completions: [0.0], name=name) for name in ("right", "short")], [1.0, 2.0]
    )
    by_name = {"short": [1.0, 3.0, None], "right": [0.0, 1.0, 2.0], "another": [None] * 3}
    # right: -1, 0, 1; short: -1/sqrt(2), 1/sqrt(2).
    root = math.sqrt(0.5)
    assert rewards.aggregate_group(by_name) == pytest.approx([-1 - 2 * root, 2 * root, None])
