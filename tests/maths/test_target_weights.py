"""Weights of targets over bins of the quantile, against integrals, enumerated best-of-n and the law of ranks."""

import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution, exponential_tilt, least_kl, tilt_strength
from nonpareil.maths.target_weights import (
    TargetLaw,
    log_target_weights,
    log_values,
    quantile_bins,
    reachable_win_rate,
)

N = (1, 1.5, 2, 4, 16, 200)


def weights_at(target: str, n: float, u: torch.Tensor) -> torch.Tensor:
    if target == "best_of_n":
        return n * u ** (n - 1)
    c = tilt_strength(n / (n + 1))
    return c * (c * (u - 1)).exp() / -math.expm1(-c) if c else torch.ones_like(u)


@pytest.mark.parametrize(("target", "n", "bins", "m"), [("tilt", 8, 16, 8), ("best_of_n", 3, 5, 4)])
def test_what_can_be_learnt_of_a_group_wins_as_often_as_is_said(target, n, bins, m) -> None:
    """By the mean weight of a completion of quantile u, whose rank among m is 1 and a binomial number of others."""
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    by_rank = (
        quantile_bins(torch.arange(m).double()[None], bins)[0] @ log_target_weights(target, n, bins).exp()
    )
    chances = [math.comb(m - 1, r) * u**r * (1 - u) ** (m - 1 - r) for r in range(m)]
    learnt = sum(chance * weight for chance, weight in zip(chances, by_rank, strict=True))
    assert reachable_win_rate(target, n, bins, m) == pytest.approx((learnt * u).mean().item(), abs=1e-5)
    assert reachable_win_rate(target, n, 4000, 4000) == pytest.approx(n / (n + 1), abs=1e-3)


@pytest.mark.parametrize("target", ["tilt", "best_of_n"])
@pytest.mark.parametrize("n", N)
def test_each_bin_has_the_mean_of_the_weight(target: TargetLaw, n: float) -> None:
    middles = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000
    means = weights_at(target, n, middles).view(8, 1000).mean(1)
    log_weights = log_target_weights(target, n, 8)
    torch.testing.assert_close(log_weights.exp(), means, rtol=1e-3, atol=1e-30)
    assert log_weights.exp().mean().item() == pytest.approx(1, rel=1e-12)
    assert log_target_weights(target, 1e6, 8).isfinite().all()


@pytest.mark.parametrize("n", N)
def test_the_tilt_wins_as_often_as_best_of_n_and_spends_the_least_kl(n: float) -> None:
    wins, kl = exponential_tilt(torch.tensor(tilt_strength(n / (n + 1)), dtype=torch.float64))
    assert wins.item() == pytest.approx(n / (n + 1), abs=1e-12)
    assert kl.item() == pytest.approx(least_kl(n / (n + 1)), abs=1e-12)


def test_with_the_whole_law_for_a_group_the_value_is_that_of_enumerated_best_of_n() -> None:
    """12 equally likely completions of 2 tokens with ties: V(s) = log E[W | s] for each first token."""
    rewards = torch.tensor([[0, 1, 1, 1, 2, 2, 5, 5, 5, 5, 7, 9.0]])
    first = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0])
    for bins in (12, 24):
        labels = quantile_bins(rewards, bins)[0].double()
        for n in N:
            best = distribution(torch.full((1, 12), 1 / 12, dtype=torch.float64), rewards.double(), n)[0]
            for token in range(3):
                here = first == token
                value = log_values(labels[here].mean(0).log(), log_target_weights("best_of_n", n, bins))
                exact = (best[here].sum() / (here.sum() / 12)).log().item()
                assert value.item() == pytest.approx(exact, abs=1e-6)


def test_right_and_wrong_answers_have_the_values_of_their_classes_in_any_bins() -> None:
    """A quarter is right: their quantiles are spread over the upper quarter, whatever the number of bins."""
    rewards = torch.tensor([[0, 0, 0, 1.0]])
    for n in N:
        right = 4 * (1 - 0.75**n)
        value = log_values(
            quantile_bins(rewards, 8)[0, 3].double().log(), log_target_weights("best_of_n", n, 8)
        )
        assert value.item() == pytest.approx(math.log(right), abs=1e-6)


def test_failed_rewards_take_no_part_and_the_others_fill_the_bins_evenly() -> None:
    nan = torch.nan
    rewards = torch.tensor([[3, nan, 1, 1, nan, 2.0], [nan] * 6])
    shares = quantile_bins(rewards, 5)
    assert torch.equal(shares.isnan().all(-1), rewards.isnan())
    torch.testing.assert_close(shares[0, [0, 2, 3, 5]], quantile_bins(torch.tensor([[3, 1, 1, 2.0]]), 5)[0])
    torch.testing.assert_close(shares[0].nansum(0), torch.full((5,), 4 / 5))
    torch.testing.assert_close(shares[0, [0, 2, 3, 5]].sum(-1), torch.ones(4))


@pytest.mark.parametrize("m", [2, 4, 16])
def test_labels_of_m_completions_weaken_best_of_2_by_a_known_factor(m: int) -> None:
    """Ranks of a completion at quantile u are binomial: the expected weight is 1 + (2 u - 1) (1 - 1 / m)."""
    weights = log_target_weights("best_of_n", 2, m).exp()
    labels = quantile_bins(torch.arange(m, dtype=torch.float64)[None], m)[0]
    for u in (0.1, 0.5, 0.9):
        chances = torch.tensor(
            [math.comb(m - 1, i) * u**i * (1 - u) ** (m - 1 - i) for i in range(m)], dtype=torch.float64
        )
        assert (chances @ labels @ weights).item() == pytest.approx(1 + (2 * u - 1) * (1 - 1 / m))


def test_what_no_target_is_is_refused() -> None:
    for n in (0.5, math.inf, math.nan):
        with pytest.raises(ConfigError, match="at least 1"):
            log_target_weights("tilt", n, 8)
    for bins in (0, -1):
        with pytest.raises(ConfigError, match="bins"):
            log_target_weights("tilt", 2, bins)
        with pytest.raises(ConfigError, match="bins"):
            quantile_bins(torch.ones(1, 2), bins)
