import math
from typing import get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError
from nonpareil.maths import best_of_n, quantiles

F64 = torch.float64
NAN = math.nan
ESTIMATORS = get_args(quantiles.QuantileEstimator)

REWARDS = torch.tensor([[0.5, 2.0, 9.0, NAN]], dtype=F64)
REFERENCES = torch.tensor([[1.0, 2.0, NAN, 3.0]], dtype=F64)  # three valid


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("plug_in", [math.log(1 / 4), math.log(2 / 4), math.log(4 / 4)]),
        ("inclusive_plug_in", [math.log(1 / 6), math.log(2 / 3), math.log(3 / 3)]),
        ("harmonic", [-11 / 6, -1 / 2 - 1 / 3, 0.0]),
    ],
)
def test_values_worked_by_hand(estimator, expected):
    # 0 of 3 below .5; 1 below and 2 at or below 2; all 3 below 9.
    values = quantiles.log_quantile(REWARDS, REFERENCES, estimator)
    torch.testing.assert_close(values, torch.tensor([[*expected, NAN]], dtype=F64), equal_nan=True)


def test_strict_count_by_hand():
    counts = quantiles.strict_count(REWARDS, REFERENCES)
    torch.testing.assert_close(counts, torch.tensor([[0.0, 1.0, 3.0, NAN]], dtype=F64), equal_nan=True)


def test_log_quantile_calls_the_function_of_its_estimators_name():
    assert {"plug_in", "harmonic", "two_sample"} < set(ESTIMATORS)
    references = torch.tensor([[1.0, 2.0], [5.0, 4.0]], dtype=F64)
    rewards = torch.tensor([[0.0, 1.0, 1.5], [6.0, 3.9, 4.0]], dtype=F64)
    for name in ("plug_in", "inclusive_plug_in", "harmonic"):
        assert torch.equal(
            quantiles.log_quantile(rewards, references, name), getattr(quantiles, name)(rewards, references)
        )
    penalty = -math.log(16)
    expected = torch.tensor([[penalty, 0.0, 0.0], [0.0, penalty, 0.0]], dtype=F64)
    torch.testing.assert_close(quantiles.log_quantile(rewards, references, "two_sample"), expected)


def test_two_sample_is_strict_and_nan_where_a_draw_failed():
    anchors = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.0, NAN], [1.0, 2.0]])
    values = quantiles.two_sample_log_quantile(torch.tensor([0.9, 1.0, 1.5, 0.0, NAN]), anchors)
    expected = torch.tensor([-math.log(16), 0.0, 0.0, NAN, NAN])
    torch.testing.assert_close(values, expected, equal_nan=True)


def test_two_sample_log_tilt_by_hand():
    """Above both, above one and level, level with both, level and below, below both, between; one failed."""
    anchors = torch.tensor(
        [[1.0, 2.0], [1.0, 2.0], [2.0, 2.0], [2.0, 3.0], [3.0, 3.0], [1.0, 3.0], [1.0, NAN]]
    )
    values = quantiles.two_sample_log_tilt(torch.tensor([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]), anchors)
    expected = torch.tensor([math.log(2), math.log(1.5), 0.0, -math.log(1.5), -math.log(8), math.log(2), NAN])
    torch.testing.assert_close(values, expected, equal_nan=True)
    with pytest.raises(ConfigError, match="2 reference rewards per prompt, got 3"):
        quantiles.two_sample_log_tilt(torch.zeros(1), torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("rate", "within"), [(1e-9, 1e-8), (0.1, 0.02), (0.3, 0.03), (0.5, 1e-12), (0.7, 0.05)]
)
def test_two_sample_log_tilt_of_binary_rewards_is_best_of_2s_but_where_hardly_any_answer_is_wrong(
    rate, within
):
    """Its mean for a right answer less that for a wrong one, against log((2 - q) / (1 - q))."""
    anchors = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=F64)
    chance = (anchors * rate + (1 - anchors) * (1 - rate)).prod(-1)
    wrong, right = (
        chance @ quantiles.two_sample_log_tilt(torch.full((4,), value, dtype=F64), anchors)
        for value in (0.0, 1.0)
    )
    assert (right - wrong).item() == pytest.approx(math.log((2 - rate) / (1 - rate)), abs=within)


def test_two_sample_penalty_fires_one_time_in_three_and_means_log_p_at_one_half():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(200_000, 3, generator=generator)
    values = quantiles.two_sample_log_quantile(draws[:, 0], draws[:, 1:])
    assert (values < 0).float().mean().item() == pytest.approx(1 / 3, abs=0.004)
    # Given p<= = 1/2 both anchors lie above with chance 1/4: mean -log(16)/4 = log(1/2).
    given_half = quantiles.two_sample_log_quantile(torch.full((200_000,), 0.5), draws[:, 1:])
    assert given_half.mean().item() == pytest.approx(math.log(0.5), abs=0.02)


def test_fixed_anchor_backward_alone_ends_a_little_beyond_best_of_2():
    # Mean penalty -log 16 (1 - u)^2 at kl_coef 1: the fixed point is pi_ref * exp(that), on a grid of u.
    size = 400
    u = (torch.arange(size, dtype=F64) + 0.5) / size
    outcomes = torch.tensor(
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=F64
    )  # below (0) or above (1)
    penalty = quantiles.two_sample_log_quantile(torch.full((4,), 0.5, dtype=F64), outcomes)
    chance = torch.where(outcomes[None] == 1, (1 - u)[:, None, None], u[:, None, None]).prod(-1)
    policy = (chance @ penalty).exp()
    policy = policy / policy.sum()
    assert (policy * u).sum().item() == pytest.approx(0.6763, abs=5e-5)
    assert (policy * (policy * size).log()).sum().item() == pytest.approx(0.2092, abs=5e-5)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-3, 3) | st.just(NAN), min_size=1, max_size=6),
    st.lists(st.integers(-3, 3) | st.just(NAN), min_size=2, max_size=2),
    st.sampled_from(ESTIMATORS),
)
def test_estimator_properties(rewards, references, estimator):
    rewards, references = torch.tensor([rewards], dtype=F64), torch.tensor([references], dtype=F64)
    values = quantiles.log_quantile(rewards, references, estimator)
    defined = (
        ~rewards.isnan()
        & (~references.isnan()).any()
        & ~(references.isnan().any() & (estimator == "two_sample"))
    )
    assert torch.equal(values.isnan(), ~defined)
    assert values[defined].isfinite().all()
    assert (values[defined] <= 0).all()
    # Only the order counts, and the order of references does not.
    same = quantiles.log_quantile(rewards.exp() + 5, references.exp() + 5, estimator)
    torch.testing.assert_close(same, values, equal_nan=True)
    flipped = quantiles.log_quantile(rewards, references.flip(-1), estimator)
    torch.testing.assert_close(flipped, values, equal_nan=True)
    # A higher reward never has a lower quantile.
    assert (values[defined][rewards[defined].argsort()].diff() >= 0).all()
    # A row does not depend on its batch.
    batch = quantiles.log_quantile(
        torch.cat([rewards, rewards]), torch.cat([references, references + 1]), estimator
    )
    torch.testing.assert_close(batch[:1], values, equal_nan=True)


@pytest.mark.parametrize("estimator", ["plug_in", "inclusive_plug_in", "harmonic"])
def test_failed_references_are_excluded_not_counted(estimator):
    with_failures = quantiles.log_quantile(REWARDS, REFERENCES, estimator)
    without = quantiles.log_quantile(REWARDS, REFERENCES[:, [0, 1, 3]], estimator)
    torch.testing.assert_close(with_failures, without, equal_nan=True)
    none_left = quantiles.log_quantile(torch.zeros(1, 2), torch.full((1, 3), NAN), estimator)
    assert none_left.isnan().all()


def test_infinite_rewards_keep_their_rank():
    references = torch.tensor([[math.inf, 0.0, NAN, -math.inf]])
    rewards = torch.tensor([[math.inf, 0.0, -math.inf]])
    assert quantiles.strict_count(rewards, references).tolist() == [[2.0, 1.0, 0.0]]
    torch.testing.assert_close(
        quantiles.inclusive_plug_in(rewards, references).exp(), torch.tensor([[1.0, 2 / 3, 1 / 3]])
    )


def test_an_inclusive_quantile_of_zero_counts_half_a_draw_near_the_harmonic_estimate():
    for m in (2, 16, 32, 300):
        lowest, references = torch.full((1, 1), -1.0), torch.rand(1, m)
        value = quantiles.inclusive_plug_in(lowest, references).item()
        assert value == pytest.approx(-math.log(2 * m), rel=1e-6)
        assert abs(value - quantiles.harmonic(lowest, references).item()) < 0.12


def test_half_precision_counts_are_not_rounded():
    # 300 is no bfloat16: a count held in the rewards' own dtype would come out as 300 -> 300 or 301 -> 300.
    references = torch.linspace(-1, 0, 301).bfloat16()[None]
    count = quantiles.strict_count(torch.ones(1, 1).bfloat16(), references)
    assert count.dtype == torch.float32
    assert count.item() == 301


def test_bad_arguments_are_named():
    rewards, references = torch.zeros(1, 2), torch.zeros(1, 3)
    with pytest.raises(ConfigError, match="two_sample needs 2 reference rewards per prompt, got 3"):
        quantiles.log_quantile(rewards, references, "two_sample")
    for function in (quantiles.log_quantile, lambda *a: quantiles.log_tilt_estimate(*a[:2], 2, a[2])):
        with pytest.raises((ConfigError, TypeError)):  # the shape checker may speak first
            function(rewards, references, "nearest")


# --- The log-ratio of best-of-n


def harmonic_number(count):
    return sum(1 / i for i in range(1, count + 1))


# Rewards .5, 2, 9 among 1, 2, 3: 0, 1, 3 strictly below and 0, 2, 3 at or below; n = 3.
TIE = math.log(1 + 1 / 2 + 1 / 4)  # sum of (p< / p<=)^i


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("plug_in", [2 * math.log(1 / 4) + math.log(3), 2 * math.log(3 / 4) + TIE, math.log(3)]),
        ("inclusive_plug_in", [2 * math.log(1 / 6) + math.log(3), 2 * math.log(2 / 3) + TIE, math.log(3)]),
        ("harmonic", [-2 * 11 / 6 + math.log(3), -2 / 3 + TIE, math.log(3)]),
    ],
)
def test_log_tilt_worked_by_hand(estimator, expected):
    values = quantiles.log_tilt_estimate(REWARDS, REFERENCES, 3, estimator)
    torch.testing.assert_close(values, torch.tensor([[*expected, NAN]], dtype=F64), equal_nan=True)


def test_log_tilt_of_two_samples_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 1.5, 5.0], [0.0, 0.0, 0.0, 0.0]], dtype=F64)
    references = torch.tensor([[1.0, 2.0], [1.0, NAN]], dtype=F64)
    values = quantiles.log_tilt_estimate(rewards, references, 2, "two_sample")
    # 1.0 is equal to one and above none: s = 0, no tie with what is below, log 1.
    expected = [-math.log(16) + math.log(2), 0.0, math.log(2), math.log(2)]
    torch.testing.assert_close(values, torch.tensor([expected, [NAN] * 4], dtype=F64), equal_nan=True)


@pytest.mark.parametrize("estimator", ["plug_in", "inclusive_plug_in", "harmonic"])
@pytest.mark.parametrize("n", [2, 7])
def test_log_tilt_of_many_references_is_that_of_best_of_n_ties_included(estimator, n):
    reference = torch.tensor([0.3, 0.25, 0.25, 0.2], dtype=F64)
    rewards = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=F64)
    references = rewards.repeat_interleave((reference * 40_000).long())[None]
    values = quantiles.log_tilt_estimate(rewards[None], references, n, estimator)[0]
    truth = (best_of_n.distribution(reference, rewards, n) / reference).log()
    torch.testing.assert_close(values, truth, atol=1e-3, rtol=0)


def test_the_harmonic_log_tilt_has_the_taylor_tail_as_its_only_bias():
    """Over all counts c ~ Binomial(m, u), reward without ties: (n-1) sum_{j>m} (1-u)^j / j too high."""
    n, m, u = 5, 4, 0.3
    mean = 0.0
    for below in range(m + 1):
        references = torch.tensor([[0.0] * below + [2.0] * (m - below)], dtype=F64)
        value = quantiles.log_tilt_estimate(torch.ones(1, 1, dtype=F64), references, n).item()
        mean += math.comb(m, below) * u**below * (1 - u) ** (m - below) * value
    tail = sum((1 - u) ** j / j for j in range(m + 1, 400))
    assert mean == pytest.approx(math.log(n) + (n - 1) * (math.log(u) + tail), abs=1e-10)


def test_group_log_tilt_by_hand():
    """Rewards 4, 1, failed, 4, 2 at n = 3: ranks among the 3 others, the two 4s share one value."""
    rewards = torch.tensor([[4.0, 1.0, NAN, 4.0, 2.0], [NAN, NAN, 3.0, NAN, NAN]], dtype=F64)
    values = quantiles.group_log_tilt(rewards, 3)
    four = math.log(1 + 2 / 3 + 4 / 9)  # all 3 at or below, 2 below
    one = math.log(3) - 2 * 11 / 6  # none of 3
    two = math.log(3) + 2 * (1 - 11 / 6)  # 1 of 3
    expected = torch.tensor([[four, one, NAN, four, two], [NAN] * 5], dtype=F64)
    torch.testing.assert_close(values, expected, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3) | st.just(NAN), min_size=1, max_size=6), st.integers(2, 12))
def test_group_log_tilt_is_the_estimate_among_the_others(rewards, n):
    rewards = torch.tensor([rewards], dtype=F64)
    values = quantiles.group_log_tilt(rewards, n)
    for i in range(rewards.shape[1]):
        others = torch.cat([rewards[:, :i], rewards[:, i + 1 :]], 1)
        if others.shape[1]:
            apart = quantiles.log_tilt_estimate(rewards[:, i : i + 1], others, n)
            torch.testing.assert_close(values[:, i : i + 1], apart, equal_nan=True)
        else:
            assert values.isnan().all()


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 8), (6, 4)])
def test_group_targets_are_the_mean_log_tilt_of_best_and_worst(m, n):
    """Without ties: log n + (n-1) (H_{i-1} - H_{m-1}), whose best minus worst at m = n is BoNBoN's margin."""
    values = quantiles.group_log_tilt(torch.arange(m, dtype=F64)[None], n)[0]
    expected = [math.log(n) + (n - 1) * (harmonic_number(i) - harmonic_number(m - 1)) for i in range(m)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=F64))
    same = quantiles.group_log_tilt(torch.arange(n, dtype=F64)[None], n)[0]
    assert (same[-1] - same[0]).item() == pytest.approx(best_of_n.margin(n))


def test_equal_rewards_have_no_tilt():
    """All equal: best-of-n is the reference, whatever n and m."""
    equal = torch.full((1, 5), 2.0, dtype=F64)
    assert quantiles.group_log_tilt(equal, 9).abs().max() < 1e-12
    for estimator in ("plug_in", "inclusive_plug_in", "harmonic"):
        assert quantiles.log_tilt_estimate(equal, equal, 9, estimator).abs().max() < 1e-12
