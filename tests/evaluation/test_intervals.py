"""Intervals over prompts cover what they say they cover, from two prompts on, for the laws that figures have."""

import math

import pytest
import torch

from nonpareil.evaluation.intervals import Bootstrap, few_prompts
from nonpareil.evaluation.rho_squared import rho_squared_of
from nonpareil.maths.best_of_n import equivalent_n, least_kl
from nonpareil.maths.win_rate import pairwise

F64 = torch.float64


def normal(b, generator):
    return torch.randn(b, generator=generator, dtype=F64)


def skewed(b, generator, sigma=0.7):
    """KLs: positive, with a long upper tail; their mean is exp(sigma^2 / 2)."""
    return (sigma * normal(b, generator)).exp()


def zero_or_one(b, generator, success):
    return (torch.rand(b, generator=generator, dtype=F64) < success).double()


def best_of(n, b, generator):
    """Win rates of best-of-n over 4 x 4 pairs per prompt; their mean is n / (n+1)."""
    policy = torch.rand(b, 4, n, generator=generator, dtype=F64).amax(-1)
    return pairwise(policy, torch.rand(b, 4, generator=generator, dtype=F64)).win_rate


def rho_squared(boot, b, generator):
    """Of 16 draws per prompt, whose log-ratios vary more at some prompts: rho squared is .4 times exp(-.3^2)."""
    u = torch.rand(b, 16, generator=generator, dtype=F64)
    noise = torch.randn(b, 16, generator=generator, dtype=F64)
    log_ratio = skewed(b, generator, 0.3)[:, None] * (0.4**0.5 * 12**0.5 * u + 0.6**0.5 * noise)
    return rho_squared_of(log_ratio, u, boot)


def worth(means):
    return equivalent_n(means[:, 0])


def efficiency(means):
    return least_kl(means[:, 0]) / means[:, 1]


def excess(means):
    return means[:, 0] - means[:, 1]


# name: truth, interval of one study
LAWS = {
    "normal": (0.0, lambda boot, b, g: boot.mean(normal(b, g))),
    "success .5": (0.5, lambda boot, b, g: boot.mean(zero_or_one(b, g, 0.5), "share")),
    "success .9": (0.9, lambda boot, b, g: boot.mean(zero_or_one(b, g, 0.9), "share")),
    "success .97": (0.97, lambda boot, b, g: boot.mean(zero_or_one(b, g, 0.97), "share")),
    "win rate .9": (0.9, lambda boot, b, g: boot.mean(best_of(9, b, g), "share")),
    "KL": (math.exp(0.245), lambda boot, b, g: boot.mean(skewed(b, g), "positive")),
    "reward, skewed": (math.exp(0.125), lambda boot, b, g: boot.mean(skewed(b, g, 0.5))),
    "worth N": (
        9.0,
        lambda boot, b, g: boot.of_means([best_of(9, b, g)], worth, scale="positive", shares=[0]),
    ),
    "efficiency": (
        least_kl(0.9) / math.exp(0.245),
        lambda boot, b, g: boot.of_means(
            [best_of(9, b, g), skewed(b, g)], efficiency, scale="positive", shares=[0]
        ),
    ),
    "difference": (
        0.15,
        lambda boot, b, g: boot.of_means([best_of(9, b, g), best_of(3, b, g)], excess),
    ),
    "rho squared": (0.4 * math.exp(-0.09), rho_squared),
    "very skewed": (math.exp(0.5), lambda boot, b, g: boot.mean(skewed(b, g, 1.0), "positive")),
}


def coverage(law, num_prompts, studies):
    truth, interval_of = LAWS[law]
    generator = torch.Generator().manual_seed(num_prompts)
    intervals = [interval_of(Bootstrap(study), num_prompts, generator) for study in range(studies)]
    return sum(interval.low <= truth <= interval.high for interval in intervals) / studies


@pytest.mark.parametrize("num_prompts", [2, 3, 5, 12])
@pytest.mark.parametrize("law", ["normal", "success .9", "win rate .9", "KL", "efficiency"])
def test_few_prompts_are_covered(law, num_prompts):
    """A percentile bootstrap covers .5 (two prompts), .7 (three), .8 (five); two standard errors are .04 at .9."""
    assert coverage(law, num_prompts, 200) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [2, 3, 5, 8, 16, 30, 100])
@pytest.mark.parametrize("law", list(LAWS))
def test_coverage_from_2_to_100_prompts(law, num_prompts):
    lowest = 0.81 if law == "very skewed" else 0.88 if num_prompts < 30 else 0.91
    assert coverage(law, num_prompts, 2000) >= lowest


def test_what_won_at_every_prompt_may_lose_at_the_next():
    """Clopper and Pearson's interval of 16 wins of 16: [.794, 1]; of none, its mirror image."""
    won, lost = (Bootstrap().mean(torch.full((16,), value), "share") for value in (1.0, 0.0))
    assert (won.estimate, won.high) == (1, 1)
    assert won.low == pytest.approx(0.794, abs=0.015)
    assert (lost.estimate, lost.low, lost.high) == (0, 0, pytest.approx(1 - won.low, abs=1e-12))
    n = Bootstrap().of_means([torch.ones(16)], worth, scale="positive", shares=[0])
    assert (n.estimate, n.high) == (math.inf, math.inf)
    assert n.low == pytest.approx(equivalent_n(won.low), rel=1e-9)


def test_what_is_no_share_may_be_the_same_everywhere():
    for value in (0.0, 1.0, 0.3):
        interval = Bootstrap().mean(torch.full((5,), value, dtype=F64))
        assert (interval.low, interval.high) == (value, value)
    half = Bootstrap().mean(torch.full((5,), 0.5), "share")  # a policy against itself, draw by draw
    assert (half.low, half.high) == (0.5, 0.5)


def test_a_ratio_of_sums_is_a_share():
    boot = Bootstrap()
    pairs = torch.tensor([4.0, 2.0, 0.0, 6.0])
    part = boot.ratio(torch.tensor([1.0, 2.0, 0.0, 3.0]), pairs)
    assert (part.estimate, part.num_prompts, part.num_dropped) == (0.5, 3, 1)
    assert 0 < part.low < 0.5 < part.high < 1
    whole, none = boot.ratio(pairs, pairs), boot.ratio(0 * pairs, pairs)
    assert (whole.estimate, whole.high, none.estimate, none.low) == (1, 1, 0, 0)
    assert 0.2 < whole.low < 0.5, "three prompts: near .025 ** (1/3)"
    assert none.high == pytest.approx(1 - whole.low, abs=1e-12)
    assert boot.ratio(0 * pairs, 0 * pairs) is None


def test_a_function_on_a_grid_stands_beside_a_metric():
    """The N at which each resample's own curve reaches its win rate, against the closed form, with one grid."""
    generator = torch.Generator().manual_seed(0)
    win = best_of(3, 40, generator)
    grid = torch.linspace(1, 12, 200, dtype=F64)
    curves = (grid / (grid + 1)).expand(40, -1)

    def inverted(means):
        at = torch.searchsorted(means[:, 1:].contiguous(), means[:, :1].contiguous()).clamp(max=199)
        return grid[at[:, 0]]

    step = (grid[1] - grid[0]).item()
    tabulated = Bootstrap().of_means([win, curves], inverted, scale="positive", shares=[0])
    exact = Bootstrap().of_means([win], worth, scale="positive", shares=[0])
    for name in ("estimate", "low", "high"):
        assert getattr(tabulated, name) == pytest.approx(getattr(exact, name), abs=2 * step)
    failed = curves.clone()
    failed[[3, 5], 7] = math.nan
    assert Bootstrap().of_means([win, failed], inverted).num_dropped == 2


def test_below_30_prompts_a_word_of_warning():
    assert few_prompts(30) is None
    assert few_prompts(12) == "Intervals over 12 prompts are rough: take 30 or more."
    assert few_prompts(1) == "One prompt gives no interval: take 30 or more."
