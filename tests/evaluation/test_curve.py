import itertools

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation import best_of_n_report
from nonpareil.evaluation.curve import win_rate_against_one


def groups_with(draw, rewards):
    uniform = torch.full((len(rewards), 6), 1 / 6)
    groups = draw(uniform, torch.zeros(len(rewards), 6), len(rewards[0]), 0).groups
    for group, row in zip(groups, rewards, strict=True):
        group.rewards = list(row)
    return groups


def brute_force(rewards, n):
    """Mean best of every n-subset, and its win rate against every draw outside the subset."""
    best, wins = [], []
    for subset in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[i] for i in subset)
        best.append(top)
        others = [rewards[j] for j in range(len(rewards)) if j not in subset]
        wins += [(top > other) + (top == other) / 2 for other in others]
    return sum(best) / len(best), sum(wins) / len(wins) if wins else None


ROWS = [[1.0, 3.0, 2.0, 2.0, 0.0, 3.0], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.6, 0.2, 0.9, -4.0, 2.0]]


def test_equals_brute_force_over_subsets(draw):
    report = best_of_n_report(groups_with(draw, ROWS))
    assert [point.n for point in report.points] == [1, 2, 3, 4, 5, 6]
    for point in report.points:
        exact = [brute_force(row, point.n) for row in ROWS]
        assert point.reward.estimate == pytest.approx(sum(best for best, _ in exact) / 3)
        if point.n < 6:
            assert point.win_rate.estimate == pytest.approx(sum(win for _, win in exact) / 3)
    assert report.points[-1].win_rate is None
    assert report.frac_reward_zero_std == pytest.approx(1 / 3)


def test_without_ties_the_win_rate_is_the_ceiling():
    rewards = torch.randn(20, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    n = torch.arange(1, 9, dtype=torch.float64)
    assert torch.allclose(win_rate_against_one(rewards)[:, :8], (n / (n + 1)).expand(20, 8))


def test_unbiased_for_a_binary_reward():
    """Success 30%: best-of-n succeeds with 1 - .7^n, and beats one draw with that and ties."""
    rewards = (torch.rand(40_000, 5, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    for n in (1, 2, 4):
        success = 1 - 0.7**n
        exact = success * 0.7 + (success * 0.3 + (1 - success) * 0.7) / 2
        values = win_rate_against_one(rewards)[:, n - 1]
        assert values.mean().item() == pytest.approx(exact, abs=4 * values.std().item() / 200)


def test_failed_rewards_leave_the_rest(draw):
    rows = [[None, 1.0, 2.0, None], [3.0, 5.0, 4.0, None], [None] * 4]
    report = best_of_n_report(groups_with(draw, rows))
    assert report.failed_rewards == 7
    assert [point.num_prompts for point in report.points] == [2, 2, 1]  # no prompt has four
    assert report.points[0].reward.estimate == pytest.approx((1.5 + 4) / 2)
    assert report.points[2].reward.estimate == 5.0
    assert win_rate_against_one(torch.tensor([[1.0, float("nan"), 2.0]]))[0, 1].isnan()
    with pytest.raises(DataError, match="All 4 rewards failed"):
        best_of_n_report(groups_with(draw, [[None] * 4]))


def test_cost_and_recommendation(draw):
    rows = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]] * 10
    report = best_of_n_report(groups_with(draw, rows))
    assert report.points[3].tokens_per_prompt == 4 * report.mean_length == 8
    # Gain over one draw: .75 at N=8; .9 of it needs .925: 1 - C(6,N)/C(8,N) is .893 at 5, .964 at 6.
    assert report.recommended_n() == 6
    assert report.recommendation().startswith("N = 6 is the smallest with 90% of the gain of N = 8")
    assert report.to_dict()["recommended_n"] == 6
    flat = best_of_n_report(groups_with(draw, [[1.0, 1.0]] * 3))
    assert flat.recommended_n() == 1
    assert "gains nothing" in flat.recommendation()


def test_order_of_groups_and_limits(draw):
    groups = groups_with(draw, ROWS)
    assert best_of_n_report(groups[::-1]) == best_of_n_report(groups)
    assert len(best_of_n_report(groups, max_n=2).points) == 2
    for max_n in (0, 7):
        with pytest.raises(ConfigError, match=r"max_n must lie in 1\.\.6"):
            best_of_n_report(groups, max_n=max_n)
    with pytest.raises(DataError, match="no groups"):
        best_of_n_report([])


def test_ragged_groups_are_refused(draw):
    groups = groups_with(draw, ROWS)
    groups[1] = groups_with(draw, [[1.0, 2.0]])[0]
    with pytest.raises(DataError, match="equally many completions"):
        best_of_n_report(groups)
