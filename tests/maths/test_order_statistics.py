import itertools
import math
import time

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths import best_of_n
from nonpareil.maths.order_statistics import best_of_n_curve, harmonic_log_quantile, rank_weights

F64 = torch.float64
NAN = math.nan

groups = st.lists(st.integers(-4, 4) | st.just(NAN), min_size=1, max_size=7)


def subsets_mean_of_best(rewards, n):
    valid = [r for r in rewards if not math.isnan(r)]
    subsets = list(itertools.combinations(valid, n))
    return sum(map(max, subsets)) / len(subsets) if subsets else NAN


def subsets_weights(rewards, n):
    """How often each sample is the best of a subset, a best one drawn at random among equals."""
    valid = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    weights = [0.0] * len(rewards)
    subsets = list(itertools.combinations(valid, n))
    for subset in subsets:
        best = max(rewards[i] for i in subset)
        winners = [i for i in subset if rewards[i] == best]
        for i in winners:
            weights[i] += 1 / len(winners) / len(subsets)
    return weights if subsets else [NAN] * len(rewards)


@settings(max_examples=60, deadline=None)
@given(groups)
def test_curve_is_the_mean_over_all_subsets(rewards):
    curve = best_of_n_curve(torch.tensor([rewards], dtype=F64))
    expected = [subsets_mean_of_best(rewards, n) for n in range(1, len(rewards) + 1)]
    torch.testing.assert_close(curve, torch.tensor([expected], dtype=F64), equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(groups, st.data())
def test_rank_weights_are_the_winners_of_all_subsets(rewards, data):
    n = data.draw(st.integers(1, len(rewards)))
    weights = rank_weights(torch.tensor([rewards], dtype=F64), n)
    expected = torch.tensor([subsets_weights(rewards, n)], dtype=F64)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-13, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6)
)
def test_rank_weights_properties(rows, n):
    rewards = torch.tensor(rows, dtype=F64)
    weights = rank_weights(rewards, n)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(rows), dtype=F64))
    torch.testing.assert_close(rank_weights(rewards.exp() * 2 - 7, n), weights)  # only the order counts
    same = rewards[:, :, None] == rewards[:, None, :]
    torch.testing.assert_close(weights[:, :, None] * same, weights[:, None, :] * same)
    torch.testing.assert_close(rank_weights(rewards.flip(-1), n), weights.flip(-1))
    for row in range(len(rows)):  # a row does not depend on its batch
        assert torch.equal(rank_weights(rewards[row : row + 1], n)[0], weights[row])
    # The weights and the curve are one estimator.
    torch.testing.assert_close((weights * rewards).sum(-1), best_of_n_curve(rewards)[:, n - 1])


def test_a_row_with_a_failed_reward_is_the_row_without_it():
    rewards = torch.tensor([[3.0, NAN, 1.0, 2.0], [3.0, 1.0, 2.0, NAN]])
    curve, weights = best_of_n_curve(rewards), rank_weights(rewards, 2)
    without = torch.tensor([[3.0, 1.0, 2.0]])
    for row in (0, 1):
        torch.testing.assert_close(curve[row, :3], best_of_n_curve(without)[0])
        assert curve[row, 3].isnan()
    torch.testing.assert_close(weights[0, [0, 2, 3]], rank_weights(without, 2)[0])
    assert weights[0, 1] == weights[1, 3] == 0


def test_too_few_valid_rewards_are_nan_never_a_number():
    rewards = torch.tensor([[1.0, NAN, NAN], [NAN, NAN, NAN], [1.0, 2.0, NAN]])
    assert rank_weights(rewards, 2)[:2].isnan().all()
    torch.testing.assert_close(rank_weights(rewards, 2)[2], torch.tensor([0.0, 1.0, 0.0]))
    curve = best_of_n_curve(rewards, max_n=2)
    assert curve.shape == (3, 2)
    torch.testing.assert_close(curve, torch.tensor([[1.0, NAN], [NAN, NAN], [1.5, 2.0]]), equal_nan=True)


def test_curve_is_unbiased_where_resampling_with_replacement_is_not():
    # All 3-tuples from (.5, .3, .2): the mean curve must be best-of-n's exact mean reward.
    probs, rewards = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([-1.0, 0.5, 4.0], dtype=F64)
    draws = torch.tensor(list(itertools.product(range(3), repeat=3)))
    weight = probs[draws].prod(-1)
    mean_curve = weight @ best_of_n_curve(rewards[draws])
    for n in (1, 2, 3):
        exact = (best_of_n.distribution(probs, rewards, n) * rewards).sum()
        assert mean_curve[n - 1].item() == pytest.approx(exact.item(), abs=1e-14)


def test_weighted_log_probs_are_the_forward_kl_in_expectation():
    probs, rewards, n = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.0, 1.0, 1.0], dtype=F64), 2
    loss = torch.tensor([0.3, 1.1, 2.7], dtype=F64)  # -log pi of some policy
    draws = torch.tensor(list(itertools.product(range(3), repeat=4)))
    estimate = (probs[draws].prod(-1) * (rank_weights(rewards[draws], n) * loss[draws]).sum(-1)).sum()
    exact = (best_of_n.distribution(probs, rewards, n) * loss).sum()
    assert estimate.item() == pytest.approx(exact.item(), abs=1e-14)


def test_large_groups_stay_exact():
    # Rewards i = 1..m: E[max of n] = n (m + 1) / (n + 1), the mean of the maximum of n distinct ranks.
    m = 1000
    curve = best_of_n_curve(torch.arange(1, m + 1, dtype=F64)[None])[0]
    n = torch.arange(1, m + 1, dtype=F64)
    torch.testing.assert_close(curve, n * (m + 1) / (n + 1), rtol=1e-11, atol=0)
    assert rank_weights(torch.arange(m, dtype=F64)[None], 500).sum().item() == pytest.approx(1, abs=1e-10)


def test_half_precision_is_worked_out_in_double_and_returned_in_single():
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    curve = best_of_n_curve(rewards)
    assert curve.dtype == rank_weights(rewards, 3).dtype == torch.float32
    torch.testing.assert_close(curve, best_of_n_curve(rewards.double()).float())


def test_a_hundred_thousand_prompts_take_seconds():
    rewards = torch.randn(100_000, 64, generator=torch.Generator().manual_seed(0))
    rewards[::7, 3] = NAN
    start = time.perf_counter()
    curve = best_of_n_curve(rewards)
    assert time.perf_counter() - start < 20  # about 1 s on an idle core
    assert curve[1, 63].item() == rewards[1].max().item()


def test_harmonic_log_quantile_is_the_mean_log_quantile_of_a_rank():
    m = 8
    count = torch.arange(m + 1, dtype=F64)
    values = harmonic_log_quantile(count, m)
    exact = [-sum(1 / k for k in range(c + 1, m + 1)) for c in range(m + 1)]
    torch.testing.assert_close(values, torch.tensor(exact, dtype=F64), rtol=0, atol=1e-14)
    # E[log u_(i)] of m uniforms, best i = m: -1/m, worst i = 1: -H_m; by quadrature of the density m u^(m-1).
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    assert (m * u ** (m - 1) * u.log()).mean().item() == pytest.approx(values[m - 1].item(), abs=1e-8)
    assert (m * (1 - u) ** (m - 1) * u.log()).mean().item() == pytest.approx(values[0].item(), abs=1e-4)


def test_harmonic_log_quantile_is_unbiased_up_to_its_taylor_tail():
    m, below = 6, 0.35
    chance = [math.comb(m, c) * below**c * (1 - below) ** (m - c) for c in range(m + 1)]
    mean = sum(p * harmonic_log_quantile(torch.tensor(c).double(), m).item() for c, p in enumerate(chance))
    tail = -sum((1 - below) ** k / k for k in range(m + 1, 400))
    assert mean + tail == pytest.approx(math.log(below), abs=1e-13)


def test_harmonic_log_quantile_takes_integer_counts_and_sizes_per_row():
    values = harmonic_log_quantile(torch.tensor([[0, 3], [2, 2]]), torch.tensor([[3], [2]]))
    torch.testing.assert_close(values, torch.tensor([[-11 / 6, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("n", [0, 4])
def test_n_beyond_the_samples_is_refused(n):
    rewards = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=rf"n = {n}: must lie in 1 \.\. 3"):
        rank_weights(rewards, n)
    with pytest.raises(ConfigError, match=rf"max_n = {n}: must lie in 1 \.\. 3"):
        best_of_n_curve(rewards, n)


def test_infinite_rewards_are_refused():
    with pytest.raises(DataError, match="infinity"):
        best_of_n_curve(torch.tensor([[1.0, -math.inf]]))
