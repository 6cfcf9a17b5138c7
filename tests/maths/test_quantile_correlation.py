"""The moments of a draw's number and its reward's quantile, against every group that can be drawn."""

import itertools
import math

import pytest
import torch

from nonpareil.maths.quantile_correlation import draw_covariance, quantile_covariance, quantile_variance

F64 = torch.float64
NAN = math.nan
CHANCES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
VALUES = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=F64)
REWARDS = {
    "all differ": [0.0, 1.0, 2.0, 3.0],
    "ties": [0.0, 2.0, 2.0, 1.0],
    "0 and 1": [0.0, 1.0, 1.0, 1.0],
    "no signal": [2.0, 2.0, 2.0, 2.0],
    "one fails": [0.0, 1.0, 1.0, NAN],
}


def every_group(rewards, m):
    """All groups of m draws of the four completions: their chances, values and rewards."""
    draws = torch.tensor(list(itertools.product(range(4), repeat=m)))
    return CHANCES[draws].prod(1), VALUES[draws], rewards[draws]


def truth(rewards):
    """Cov(value, u), Var(u) and Var(value) of the law, given that the reward does not fail."""
    known = ~rewards.isnan()
    p, x, r = (each[known] for each in (CHANCES, VALUES, rewards))
    p = p / p.sum()
    u = torch.stack([p[r < reward].sum() + p[r == reward].sum() / 2 for reward in r])
    assert (p * u).sum().item() == pytest.approx(0.5)
    mean = (p * x).sum()
    return [(p * (x - mean) * (u - 0.5)).sum(), (p * (u - 0.5) ** 2).sum(), (p * (x - mean) ** 2).sum()]


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("name", list(REWARDS))
def test_every_moment_is_unbiased_whatever_m_is(name, m):
    """In expectation over all groups that have what a moment needs; no group of two shows how rewards tie."""
    rewards = torch.tensor(REWARDS[name], dtype=F64)
    chance, values, drawn = every_group(rewards, m)
    found = [
        quantile_covariance(values, drawn),
        quantile_variance(drawn),
        draw_covariance(values, values, drawn),
    ]
    if m == 2:
        assert found[1].isnan().all()
        del found[1]
    exact = truth(rewards)
    if m == 2:
        del exact[1]
    for moment, expected in zip(found, exact, strict=True):
        told = ~moment.isnan()
        mean = (chance * moment)[told].sum() / chance[told].sum()
        assert mean.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("m", [2, 5, 16])
def test_ranks_in_place_of_quantiles_would_be_biased(m):
    """Their covariance is the same, their variance (m + 1) / m times as large: the square is low by 1 / (m + 1)."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.rand(2, 9, m, generator=generator, dtype=F64)
    ranks = (rewards.argsort(1).argsort(1) + 0.5) / m
    assert torch.allclose(draw_covariance(values, ranks, rewards), quantile_covariance(values, rewards))
    variance = draw_covariance(ranks, ranks, rewards)
    assert torch.allclose(variance, quantile_variance(rewards) * (m + 1) / m)


def test_rewards_that_never_tie_have_a_quantile_of_known_variance():
    rewards = torch.tensor([[0.1, 0.7, NAN], [0.3, 0.2, 0.9], [0.3, NAN, NAN]], dtype=F64)
    assert quantile_variance(rewards).tolist()[:2] == [1 / 12, 1 / 12]
    assert quantile_variance(rewards)[2].isnan()
    tied = torch.cat([rewards, torch.tensor([[1.0, 1.0, 0.0]], dtype=F64)])
    assert quantile_variance(tied).isnan().tolist() == [True, False, True, False]
    assert quantile_variance(tied)[3].item() == pytest.approx(1 / 12)


def test_what_is_constant_has_no_variance_to_the_last_bit():
    values = torch.full((3, 7), 0.1, dtype=F64) + torch.tensor([[0.0], [1e6], [-1e3]], dtype=F64)
    rewards = torch.rand(3, 7, dtype=F64)
    assert draw_covariance(values, values, rewards).tolist() == [0, 0, 0]
    assert draw_covariance(values, rewards, rewards).tolist() == [0, 0, 0]
    assert quantile_covariance(values, rewards).tolist() == [0, 0, 0]
    assert quantile_covariance(rewards, torch.ones(3, 7)).tolist() == [0, 0, 0]


def test_a_failed_reward_is_as_no_draw_and_order_and_offset_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    values, others = torch.randn(2, 5, 6, generator=generator, dtype=F64)
    rewards = torch.randint(0, 3, (5, 6), generator=generator).double()
    failed = torch.cat([rewards, torch.full((5, 2), NAN, dtype=F64)], 1)
    padded = [torch.cat([each, torch.full((5, 2), 1e9, dtype=F64)], 1) for each in (values, others)]
    order = torch.randperm(8, generator=generator)

    def moments(x, y, r):
        return torch.stack([quantile_covariance(x, r), quantile_variance(r), draw_covariance(x, y, r)])

    plain = moments(values, others, rewards)
    assert torch.allclose(moments(*(each[:, order] for each in (*padded, failed))), plain, atol=1e-12)
    assert torch.allclose(moments(values + 1e4, others - 1e4, rewards), plain, atol=1e-9)


def test_one_reward_tells_nothing():
    rewards = torch.tensor([[1.0, NAN], [NAN, NAN]])
    for moment in (
        quantile_covariance(torch.rand(2, 2), rewards),
        quantile_variance(rewards),
        draw_covariance(torch.rand(2, 2), torch.rand(2, 2), rewards),
    ):
        assert moment.isnan().all()
