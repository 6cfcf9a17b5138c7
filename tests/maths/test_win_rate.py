import dataclasses
import math
import statistics

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths import best_of_n
from nonpareil.maths.bootstrap import bootstrap_interval
from nonpareil.maths.win_rate import pairwise

F64 = torch.float64
NAN = math.nan

rewards = st.lists(st.integers(-3, 3) | st.just(NAN), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rewards, rewards)
def test_pairwise_counts_every_valid_pair(policy, reference):
    counts = pairwise(torch.tensor([policy], dtype=F64), torch.tensor([reference], dtype=F64))
    pairs = [(p, r) for p in policy for r in reference if not (math.isnan(p) or math.isnan(r))]
    for share, wanted in [
        (counts.win, sum(p > r for p, r in pairs)),
        (counts.tie, sum(p == r for p, r in pairs)),
        (counts.loss, sum(p < r for p, r in pairs)),
    ]:
        assert share.item() == pytest.approx(wanted / len(pairs) if pairs else NAN, nan_ok=True)
    half = counts.win + counts.tie / 2
    torch.testing.assert_close(counts.win_rate, half, equal_nan=True)


def test_one_win_one_loss_and_98_ties_is_one_half():
    policy, reference = torch.zeros(1, 10), torch.zeros(1, 10)
    policy[0, 0], reference[0, 0] = 1.0, 1.0
    counts = pairwise(policy, reference)
    assert counts.tie.item() == pytest.approx(0.82)
    assert counts.win_rate.item() == 0.5


def test_a_policy_against_itself_is_exactly_one_half():
    own = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    own[3, 2] = NAN
    assert (pairwise(own, own).win_rate == 0.5).all()
    interval = bootstrap_interval(pairwise(own, own).win_rate)
    assert (interval.estimate, interval.low, interval.high, interval.standard_error) == (0.5, 0.5, 0.5, 0.0)


def test_independent_draws_of_one_policy_have_one_half_inside_the_interval():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(300, 4, generator=generator), torch.randn(300, 4, generator=generator)
    interval = bootstrap_interval(pairwise(first, second).win_rate)
    assert interval.low < 0.5 < interval.high


def test_swapping_the_sides_swaps_wins_and_losses():
    generator = torch.Generator().manual_seed(0)
    policy = torch.randint(0, 4, (20, 5), generator=generator).float()
    reference = torch.randint(0, 4, (20, 3), generator=generator).float()
    ours, theirs = pairwise(policy, reference), pairwise(reference, policy)
    torch.testing.assert_close(ours.win, theirs.loss)
    torch.testing.assert_close(ours.win_rate + theirs.win_rate, torch.ones(20))
    shifted = pairwise(policy.exp(), reference.exp())  # only the order counts
    assert torch.equal(shifted.win_rate, ours.win_rate)


def test_estimate_is_the_mean_and_standard_error_its_textbook_value():
    values = torch.randn(400, dtype=F64, generator=torch.Generator().manual_seed(0))
    interval = bootstrap_interval(values, num_resamples=4000)
    assert interval.estimate == pytest.approx(values.mean().item(), abs=1e-12)
    error = values.std().item() / math.sqrt(400)
    assert interval.standard_error == pytest.approx(error, rel=0.05)
    normal = statistics.NormalDist(interval.estimate, error)
    assert interval.low == pytest.approx(normal.inv_cdf(0.025), abs=0.2 * error)
    assert interval.high == pytest.approx(normal.inv_cdf(0.975), abs=0.2 * error)
    narrow = bootstrap_interval(values, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_interval_covers_the_truth_as_often_as_it_says():
    # 300 studies of 100 prompts with 4 x 4 dependent pairs each; the truth is best-of-3's win rate, 3/4.
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for study in range(300):
        policy = torch.rand(100, 4, 3, generator=generator).amax(-1)
        reference = torch.rand(100, 4, generator=generator)
        win = pairwise(policy, reference).win_rate
        interval = bootstrap_interval(win, level=0.9, num_resamples=400, seed=study)
        covered += interval.low <= best_of_n.win_rate(3) <= interval.high
    assert 0.85 <= covered / 300 <= 0.95


def test_metrics_share_their_resampled_prompts():
    base = torch.randn(50, dtype=F64, generator=torch.Generator().manual_seed(0))
    paired = torch.stack([base + 1, base], dim=1)
    interval = bootstrap_interval(paired, lambda means: means[:, 0] - means[:, 1])
    # Each prompt gains exactly 1: unpaired resampling would spread the difference.
    for value in (interval.estimate, interval.low, interval.high):
        assert value == pytest.approx(1, abs=1e-12)
    # One metric alone is resampled as it is beside another.
    alone = bootstrap_interval(base, seed=3)
    beside = bootstrap_interval(paired, lambda means: means[:, 1], seed=3)
    assert (alone.low, alone.high) == pytest.approx((beside.low, beside.high), abs=1e-12)
    assert alone.low != pytest.approx(bootstrap_interval(base, seed=4).low, abs=1e-6)


def test_kl_efficiency_gets_an_interval():
    generator = torch.Generator().manual_seed(0)
    win = 0.75 + 0.1 * torch.randn(200, dtype=F64, generator=generator)
    spent = 1.0 + 0.2 * torch.randn(200, dtype=F64, generator=generator)
    interval = bootstrap_interval(
        torch.stack([win, spent], dim=1), lambda means: best_of_n.least_kl(means[:, 0]) / means[:, 1]
    )
    expected = best_of_n.least_kl(win.mean().item()) / spent.mean().item()
    assert interval.estimate == pytest.approx(expected, rel=1e-12)
    assert interval.low < interval.estimate < interval.high


def test_an_infinite_statistic_is_a_bound_not_a_nan():
    win = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=F64)
    interval = bootstrap_interval(win[:, None], lambda means: best_of_n.equivalent_n(means[:, 0]))
    assert interval.estimate == pytest.approx(3)
    assert interval.high == math.inf
    assert interval.low < 3


def test_failed_prompts_are_dropped_and_counted():
    values = torch.tensor([[1.0, 2.0], [NAN, 9.0], [3.0, NAN], [5.0, 4.0]])
    interval = bootstrap_interval(values, lambda means: means.sum(-1))
    assert interval.estimate == 6
    assert (interval.num_prompts, interval.num_dropped) == (2, 2)
    without = bootstrap_interval(values[[0, 3]], lambda means: means.sum(-1))
    assert interval == dataclasses.replace(without, num_dropped=2)


def test_one_prompt_has_an_estimate_but_no_interval():
    interval = bootstrap_interval(torch.tensor([0.7], dtype=F64))
    assert interval.estimate == 0.7
    assert all(map(math.isnan, (interval.low, interval.high, interval.standard_error)))


def test_bad_arguments_are_named():
    values = torch.rand(4)
    with pytest.raises(ConfigError, match="level = 95"):
        bootstrap_interval(values, level=95.0)
    with pytest.raises(ConfigError, match="num_resamples = 1"):
        bootstrap_interval(values, num_resamples=1)
    with pytest.raises(ConfigError, match="2 metrics"):
        bootstrap_interval(torch.rand(4, 2))
    with pytest.raises(DataError, match="none of 3 prompts"):
        bootstrap_interval(torch.full((3,), NAN))
