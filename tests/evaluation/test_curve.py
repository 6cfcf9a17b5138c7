import itertools
import math

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation import best_of_n_report
from nonpareil.evaluation.curve import win_rate_against_one
from nonpareil.maths import best_of_n


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
    # Two rewards of two prompts are more than three of one.
    assert [point.n for point in report.points] == [1, 2]
    assert (report.num_prompts, report.num_prompts_used) == (3, 2)
    assert [point.reward.num_prompts for point in report.points] == [2, 2]
    assert report.points[0].reward.estimate == pytest.approx((1.5 + 4) / 2)
    assert report.points[1].reward.estimate == pytest.approx((2 + 14 / 3) / 2)
    assert report.points[1].win_rate is None, "the first prompt has no third draw to compare with"
    assert report.notes() == (
        "2 of 3 prompts take part, the same at every N; the others have too few rewards that did not fail.",
        "N ends at 2, not 4: too few prompts have 3 rewards that did not fail.",
        "No win rate at N = 2: no further draw is left to compare its best with.",
    )
    assert win_rate_against_one(torch.tensor([[1.0, float("nan"), 2.0]]))[0, 1].isnan()
    with pytest.raises(DataError, match="All 4 rewards failed"):
        best_of_n_report(groups_with(draw, [[None] * 4]))


def test_an_infinite_reward_is_refused_wherever_it_is(draw):
    rows = [[1.0, 2.0, 3.0], [None, None, -math.inf]]
    with pytest.raises(DataError, match="infinity"):
        best_of_n_report(groups_with(draw, rows))


def fails(m, *failed):
    """How many prompts lack how many of m rewards; the others are 0, 1, 2, ..."""
    return [
        [None] * lacking + [float(i) for i in range(m - lacking)] for n, lacking in failed for _ in range(n)
    ]


@pytest.mark.parametrize(
    ("failed", "max_n", "reach", "used", "last_win_rate"),
    [
        ([(20, 0)], None, 8, 20, False),  # nothing failed: no draw is left at N = m
        ([(20, 0)], 4, 4, 20, True),
        ([(20, 1)], None, 7, 20, False),  # one reward of each
        ([(2, 0), (18, 1)], None, 7, 20, False),  # two whole prompts of twenty decide nothing
        ([(19, 0), (1, 1)], None, 8, 19, False),
        ([(17, 0), (3, 7)], None, 8, 17, False),  # three prompts with one reward do not end it at 1
        ([(17, 0), (3, 7)], 4, 4, 17, True),
        ([(9, 0), (11, 7)], None, 1, 20, False),  # most prompts have one reward: nothing can be said
        ([(10, 0), (10, 2)], None, 6, 20, False),
        ([(19, 0), (1, 4)], 4, 4, 19, True),  # one prompt is a small price for N = 4's win rate
        ([(10, 0), (10, 4)], 4, 4, 20, False),  # ten are not
        ([(5, 0), (95, 8)], None, 8, 5, False),  # prompts without any reward were never scored
    ],
)
def test_every_point_rests_on_the_same_prompts(draw, failed, max_n, reach, used, last_win_rate):
    report = best_of_n_report(groups_with(draw, fails(8, *failed)), max_n)
    assert (report.points[-1].n, report.num_prompts_used) == (reach, used)
    assert {point.reward.num_prompts for point in report.points} == {used}
    assert {point.reward.num_dropped for point in report.points} == {0}
    assert all(point.win_rate.num_prompts == used for point in report.points[:-1])
    assert (report.points[-1].win_rate is not None) == last_win_rate
    said = " ".join(report.notes())
    total = sum(n for n, _ in failed)
    assert (f"{used} of {total} prompts take part" in said) == (used < total)
    assert (f"N ends at {reach}, not {max_n or 8}" in said) == (reach < (max_n or 8))
    assert (f"No win rate at N = {reach}" in said) != last_win_rate
    assert report.to_dict()["notes"] == list(report.notes())


def test_prompts_without_failures_do_not_decide_the_recommended_n(draw):
    """Two prompts flat from 4 draws on and whole; forty that still rise, each with one failed reward."""
    generator = torch.Generator().manual_seed(0)
    rising = [[None, *torch.rand(7, generator=generator).tolist()] for _ in range(40)]
    flat = [[1.0] * 5 + [0.0] * 3] * 2
    report = best_of_n_report(groups_with(draw, rising + flat))
    assert (report.points[-1].n, report.num_prompts_used, report.recommended_n()) == (7, 42, 7)


def test_cost_and_recommendation(draw):
    rows = [[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]] * 10
    report = best_of_n_report(groups_with(draw, rows))
    assert report.points[3].tokens_per_prompt == 4 * report.mean_length == 8
    # pass@N is 1 - C(4,N)/C(8,N): .5, .786, .929, .986, 1, ...; .9 of the gain of .5 needs .95.
    assert report.recommended_n() == 4
    assert not report.still_rising()
    assert report.recommendation().startswith("N = 4 is the smallest with 90% of the gain of N = 8")
    assert report.to_dict()["recommended_n"] == 4
    flat = best_of_n_report(groups_with(draw, [[1.0, 1.0]] * 3))
    assert (flat.recommended_n(), flat.still_rising()) == (1, False)
    assert "gains nothing" in flat.recommendation()
    one = best_of_n_report(groups_with(draw, [[1.0], [0.0]]))
    assert (one.recommended_n(), one.recommendation()[:8]) == (1, "One draw")


def test_a_curve_that_has_not_flattened_recommends_no_n_below_the_last(draw):
    """1 - C(6,N)/C(8,N) is .25, .786 at N = 4 and 1 at N = 8: 29% of the gain is in the last doubling."""
    rows = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]] * 10
    report = best_of_n_report(groups_with(draw, rows))
    assert report.recommended_n() == 8
    assert report.recommendation() == (
        "Still rising at N = 8: draw more. From N = 4 to 8 comes 29% of the gain of 0.75."
    )
    assert report.to_dict()["still_rising"] is True
    assert "N = 5: raise max_n." in best_of_n_report(groups_with(draw, rows), 5).recommendation()
    two = best_of_n_report(groups_with(draw, [[0.0, 1.0]] * 3))
    assert "Still rising at N = 2: draw more. From N = 1 to 2 comes 100%" in two.recommendation()


def test_a_reward_of_log_n_is_still_rising_at_64_and_one_that_saturates_is_not(draw):
    """The best of n of an exponential reward is the harmonic number of n; of a uniform one n / (n+1)."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(400, 64, generator=generator, dtype=torch.float64)
    assert best_of_n_report(groups_with(draw, (-uniform.log()).tolist())).still_rising()
    saturated = best_of_n_report(groups_with(draw, uniform.tolist()))
    assert saturated.recommended_n() == pytest.approx(15, abs=1)  # n / (n+1) >= .5 + .9 (64/65 - .5)
    assert not saturated.still_rising()


def test_rewards_0_and_1_are_pass_at_n(draw):
    successes = [0, 1, 3, 6] * 5
    rows = [[1.0] * s + [0.0] * (6 - s) for s in successes]
    report = best_of_n_report(groups_with(draw, rows))
    assert (report.zero_one, report.rewards_tie, report.reward_name) == (True, True, "pass@N")
    for point in report.points:
        exact = [1 - math.comb(6 - s, point.n) / math.comb(6, point.n) for s in successes]
        assert point.reward.estimate == pytest.approx(sum(exact) / 20)
        assert 0 < point.reward.low < point.reward.high < 1
    assert any(note.startswith("Rewards are 0 or 1: pass@N") for note in report.notes())
    wins = report.points[4].win_rate.estimate
    assert f"Rewards tie: best-of-5 wins {wins:.3f} of the time; without ties 0.833." in report.notes()
    every = best_of_n_report(groups_with(draw, [[1.0, 1.0]] * 16)).points[0].reward
    assert (every.estimate, every.high) == (1, 1)
    assert every.low == pytest.approx(0.794, abs=0.015), "16 successes of 16 prompts leave room for a failure"


def test_win_rate_and_kl_of_best_of_n_count_ties(draw):
    """Success p: best-of-4 has q = 1 - (1-p)^4, wins (1 + q - p) / 2, spends q log q/p + (1-q) log (1-q)/(1-p)."""
    p, q = 0.3, 1 - 0.7**4
    rewards = (torch.rand(3000, 16, generator=torch.Generator().manual_seed(2)) < p).double().tolist()
    point = best_of_n_report(groups_with(draw, rewards)).points[3]
    assert point.win_rate_ceiling == pytest.approx(point.win_rate.estimate, abs=1e-9)
    error = 4 * point.win_rate.standard_error
    assert point.win_rate.estimate == pytest.approx(0.5 + (q - p) / 2, abs=error)
    exact = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert exact < 0.55, "the bound without ties is .636"
    assert point.kl_upper_bound == pytest.approx(exact, rel=0.03)


def test_without_ties_win_rate_and_kl_are_the_formulas(draw):
    rewards = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).tolist()
    report = best_of_n_report(groups_with(draw, rewards))
    assert (report.zero_one, report.rewards_tie, report.reward_name) == (False, False, "reward")
    assert not any("tie" in note for note in report.notes())
    for point in report.points:
        assert point.win_rate_ceiling == pytest.approx(best_of_n.win_rate(point.n))
        assert point.kl_upper_bound == pytest.approx(best_of_n.kl_upper_bound(point.n))


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
