import math
from typing import get_args

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError
from nonpareil.maths import quantiles

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


def test_two_sample_penalty_fires_one_time_in_three_and_means_log_p_at_one_half():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(200_000, 3, generator=generator)
    values = quantiles.two_sample_log_quantile(draws[:, 0], draws[:, 1:])
    assert (values < 0).float().mean().item() == pytest.approx(1 / 3, abs=0.004)
    # Given p<= = 1/2 both anchors lie above with chance 1/4: mean -log(16)/4 = log(1/2).
    given_half = quantiles.two_sample_log_quantile(torch.full((200_000,), 0.5), draws[:, 1:])
    assert given_half.mean().item() == pytest.approx(math.log(0.5), abs=0.02)


def test_fixed_anchor_backward_alone_ends_where_the_paper_notes_say():
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
    with pytest.raises(ConfigError, match="two_sample needs 2 reference rewards a prompt, got 3"):
        quantiles.log_quantile(rewards, references, "two_sample")
    with pytest.raises((ConfigError, TypeError)):  # the shape checker may speak first
        quantiles.log_quantile(rewards, references, "nearest")
