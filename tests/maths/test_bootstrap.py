import dataclasses
import math
import statistics

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths import best_of_n
from nonpareil.maths.bootstrap import bootstrap_interval, student_t_quantile
from nonpareil.maths.win_rate import pairwise

F64 = torch.float64
NAN = math.nan


def test_a_policy_against_itself_is_exactly_one_half():
    own = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    own[3, 2] = NAN
    interval = bootstrap_interval(pairwise(own, own).win_rate)
    assert (interval.estimate, interval.low, interval.high, interval.standard_error) == (0.5, 0.5, 0.5, 0.0)


def test_independent_draws_of_one_policy_have_one_half_inside_the_interval():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(300, 4, generator=generator), torch.randn(300, 4, generator=generator)
    interval = bootstrap_interval(pairwise(first, second).win_rate)
    assert interval.low < 0.5 < interval.high


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


@pytest.mark.parametrize("scale", ["real", "positive", "share"])
@pytest.mark.parametrize("num_prompts", [2, 3, 6])
def test_few_prompts_have_the_width_of_students_interval(num_prompts, scale):
    """To first order, so of figures that vary little; the standard error has no bias at any number of prompts."""
    deviation = torch.randn(num_prompts, dtype=F64, generator=torch.Generator().manual_seed(num_prompts))
    values = 0.4 + 1e-4 * (deviation - deviation.mean())
    interval = bootstrap_interval(values, num_resamples=20_000, scale=scale)
    error = values.std().item() / math.sqrt(num_prompts)
    assert interval.standard_error == pytest.approx(error, rel=0.03)
    # Of two prompts all mixtures are equally likely: the ends of the middle 95% of a uniform law, times t over z.
    exact = {2: 0.95 * math.sqrt(3) / 1.959964}.get(num_prompts, 1.0)
    width = exact * 2 * student_t_quantile(0.95, num_prompts - 1) * error
    assert interval.high - interval.low == pytest.approx(width, rel=0.1)


def test_student_t_quantiles_are_those_of_the_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 7: 2.36462, 8: 2.30600, 29: 2.04523, 30: 2.04227}
    for degrees, quantile in table.items():
        assert student_t_quantile(0.95, degrees) == pytest.approx(quantile, rel=2e-6)
    assert student_t_quantile(0.99, 5) == pytest.approx(4.03214, rel=2e-6)
    assert student_t_quantile(0.95, 100_000) == pytest.approx(
        statistics.NormalDist().inv_cdf(0.975), rel=2e-5
    )


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


def test_metrics_share_their_weights():
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


def test_a_positive_scale_and_a_share_keep_within_their_bounds_and_odds_are_one_interval():
    """Three prompts, t of 4.3: on the real scale the interval would leave [0, 1]."""
    win = torch.tensor([0.7, 0.95, 0.99], dtype=F64)
    assert bootstrap_interval(win).high > 1
    share = bootstrap_interval(win, scale="share")
    assert 0 < share.low < share.estimate < share.high < 1
    odds = bootstrap_interval(win[:, None], lambda m: best_of_n.equivalent_n(m[:, 0]), scale="positive")
    # w / (1 - w) is monotone, and both are widened by the same odds ratio.
    assert odds.low == pytest.approx(best_of_n.equivalent_n(share.low), rel=1e-9)
    assert odds.high == pytest.approx(best_of_n.equivalent_n(share.high), rel=1e-9)
    doubled = bootstrap_interval(2 * win, scale="positive")
    once = bootstrap_interval(win, scale="positive")
    assert (doubled.low, doubled.high) == pytest.approx((2 * once.low, 2 * once.high), rel=1e-12)


def test_an_unseen_prompt_gives_clopper_and_pearsons_interval():
    for num_prompts in (2, 5, 16, 100):
        wins = torch.ones(num_prompts, dtype=F64)
        interval = bootstrap_interval(
            wins, num_resamples=40_000, scale="share", unseen=torch.zeros(1, dtype=F64)
        )
        assert (interval.estimate, interval.high) == (1, 1)
        assert interval.low == pytest.approx(0.025 ** (1 / num_prompts), abs=0.01)


def test_the_unseen_prompt_moves_no_weight_between_the_others():
    values = torch.rand(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0))

    def ratio(means):
        return means[:, 0] / means[:, 1]

    without = bootstrap_interval(values, ratio)
    nothing = bootstrap_interval(values, ratio, unseen=torch.zeros(2, dtype=F64))  # adds to neither sum
    assert (nothing.low, nothing.high) == pytest.approx((without.low, without.high), rel=1e-12)


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


@pytest.mark.parametrize("scale", ["real", "positive"])
def test_an_infinite_statistic_is_a_bound_not_a_nan(scale):
    win = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=F64)

    def capped(means):
        return torch.where(means[:, 0] > 0.9, math.inf, best_of_n.equivalent_n(means[:, 0]))

    interval = bootstrap_interval(win[:, None], capped, scale=scale)
    assert interval.estimate == pytest.approx(3)
    assert interval.high == math.inf
    assert interval.low < 3
    won = bootstrap_interval(torch.ones(4, 1), capped, scale=scale, unseen=torch.zeros(1))
    assert (won.estimate, won.high) == (math.inf, math.inf)
    assert 0 < won.low < 3


def test_an_estimate_at_a_cap_shows_how_far_below_it_may_lie():
    win = torch.tensor([0.9, 1.0, 0.8, 0.95, 0.7, 1.0], dtype=F64)
    interval = bootstrap_interval(win, scale="positive", statistic=lambda means: means[:, 0].clamp(max=0.85))
    assert interval.estimate == interval.high == 0.85
    assert interval.low < 0.8


def test_an_estimate_of_zero_has_an_upper_end():
    gain = torch.tensor([-0.2, 0.1, -0.1, 0.15], dtype=F64)  # its mean is below 0
    interval = bootstrap_interval(gain, lambda means: means[:, 0].clamp(min=0), scale="positive")
    assert interval.estimate == interval.low == 0
    assert 0.05 < interval.high < 0.5


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


def test_many_prompts_and_metrics_in_bounded_memory():
    """More weights than are held at a time: the parts are one sequence of draws."""
    values = torch.randn(3000, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    interval = bootstrap_interval(values, lambda means: means[:, 1])
    error = values[:, 1].std().item() / math.sqrt(3000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)


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
