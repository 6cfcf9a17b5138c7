"""The Beta law of success rates: its likelihood's peak, pass@n by it, and early stopping by enumeration."""

import itertools
import math

import pytest
import torch

from nonpareil.errors import DataError
from nonpareil.maths.adaptive_n import (
    draws_to_first_success,
    quantile_threshold,
    threshold_draws,
    threshold_kl,
)
from nonpareil.maths.best_of_n import kl_upper_bound
from nonpareil.maths.beta_binomial import BetaFit, fit_beta, pass_at_n
from nonpareil.maths.order_statistics import best_of_n_curve, best_of_n_values


def counts(
    alpha: float, beta: float, prompts: int, draws: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of each number of successes over prompts with Beta rates."""
    torch.manual_seed(0)
    rates = torch.distributions.Beta(alpha, beta).sample((prompts,)).double()
    successes = torch.binomial(torch.full_like(rates, draws), rates)
    found = torch.bincount(successes.long(), minlength=draws + 1).double()
    return found[None] / prompts, torch.arange(draws + 1).double(), torch.full((draws + 1,), draws).double()


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 2.5), (2.0, 2.0), (6.0, 0.7)])
def test_the_fit_finds_the_law_and_is_the_peak(alpha, beta):
    weights, successes, draws = counts(alpha, beta, 40_000, 8)
    fit = fit_beta(weights, successes, draws)
    assert fit.mean.item() == pytest.approx(alpha / (alpha + beta), rel=0.03)
    assert fit.size.item() == pytest.approx(alpha + beta, rel=0.1)

    def loglik(mean: float, size: float) -> float:
        law = torch.distributions.Beta(
            torch.tensor(mean * size).double(), torch.tensor((1 - mean) * size).double()
        )
        a, b = law.concentration1, law.concentration0
        log_beta = (
            torch.lgamma(a + successes) + torch.lgamma(b + draws - successes) - torch.lgamma(a + b + draws)
        )
        return (
            (weights[0] * (log_beta + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b))).sum().item()
        )

    at = loglik(fit.mean.item(), fit.size.item())
    for by_mean, by_size in itertools.product((0.98, 1, 1.02), repeat=2):
        assert loglik(fit.mean.item() * by_mean, fit.size.item() * by_size) <= at + 1e-9


def test_its_ends_are_one_rate_for_all_and_all_or_nothing():
    successes, draws = torch.tensor([0.0, 2.0, 4.0]), torch.full((3,), 4.0)
    same = fit_beta(torch.tensor([[0.0, 1.0, 0.0]]), successes, draws)
    assert pass_at_n(same, 50).item() == pytest.approx(1, abs=1e-6)
    assert pass_at_n(same, 3).item() == pytest.approx(7 / 8, abs=1e-3)
    apart = fit_beta(torch.tensor([[0.7, 0.0, 0.3]]), successes, draws)
    assert pass_at_n(apart, 64).item() == pytest.approx(0.3, abs=0.01)
    for never, rate in (([1.0, 0.0, 0.0], 0.0), ([0.0, 0.0, 1.0], 1.0)):
        fit = fit_beta(torch.tensor([never]), successes, draws)
        assert pass_at_n(fit, 64).item() == pytest.approx(rate, abs=1e-4)
    with pytest.raises(DataError, match="two draws"):
        fit_beta(torch.ones(1, 2) / 2, torch.tensor([0.0, 1.0]), torch.ones(2))


def test_pass_at_n_is_the_mean_over_rates():
    alpha, beta = 0.5, 3.0
    grid = (torch.arange(400_000).double() + 0.5) / 400_000
    density = grid ** (alpha - 1) * (1 - grid) ** (beta - 1)
    density /= density.sum()
    fit = BetaFit(torch.tensor([alpha / (alpha + beta)]).double(), torch.tensor([alpha + beta]).double())
    for n in (1, 7, 100):
        assert pass_at_n(fit, n).item() == pytest.approx(
            (density * (1 - (1 - grid) ** n)).sum().item(), abs=2e-3
        )


def test_a_threshold_on_the_quantile_has_the_mean_of_best_of_n():
    """By simulation: quantile, draws and KL of the first draw above the threshold."""
    draw = torch.Generator().manual_seed(0)
    for n in (2.0, 4.0, 8.0):
        tau = quantile_threshold(n)
        u = torch.rand(40_000, 40, generator=draw, dtype=torch.float64)
        accepted = u > tau
        first = accepted.double().argmax(1)
        chosen = u[torch.arange(len(u)), first][accepted.any(1)]
        assert chosen.mean().item() == pytest.approx(n / (n + 1), abs=4e-3)
        assert (first[accepted.any(1)] + 1).double().mean().item() == pytest.approx(
            threshold_draws(n), rel=0.02
        )
        # An even law on a share 1 - tau of the reference.
        assert threshold_kl(n) == pytest.approx(-math.log(1 - tau))
        assert threshold_kl(n) > kl_upper_bound(n)
    assert (threshold_draws(1.0), threshold_kl(1.0), quantile_threshold(1.0)) == (1.0, 0.0, 0.0)


def test_draws_to_the_first_success_are_those_of_every_order():
    group = [0.0, 1.0, 0.0, 0.0, 1.0]
    for n in (1, 2, 3, 5):
        taken = []
        for order in itertools.permutations(group):
            first = order[:n].index(1.0) + 1 if 1.0 in order[:n] else n
            taken.append(first)
        expected = sum(taken) / len(taken)
        found = draws_to_first_success(torch.tensor([[*group, math.nan]]).double(), 6)
        assert found[0, n - 1].item() == pytest.approx(expected)
    assert found[0, 5].isnan() or found[0, 5] >= found[0, 4]


def test_values_of_the_best_are_the_mean_over_subsets():
    rewards = [0.3, 0.9, math.nan, 0.9, -1.0, 0.5]
    gold = [5.0, 1.0, 99.0, 4.0, 2.0, 7.0]
    table = best_of_n_values(torch.tensor([rewards]).double(), torch.tensor([gold]).double())
    known = [0, 1, 3, 4, 5]
    for n in range(1, 6):
        means = []
        for subset in itertools.combinations(known, n):
            top = max(rewards[i] for i in subset)
            best = [gold[i] for i in subset if rewards[i] == top]
            means.append(sum(best) / len(best))
        assert table[0, n - 1].item() == pytest.approx(sum(means) / len(means))
    assert table[0, 5].isnan()
    rows = torch.randn(30, 7, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(best_of_n_values(rows, rows), best_of_n_curve(rows))
    some = torch.tensor([[1.0, 2.0]]).double()
    assert best_of_n_values(some, torch.tensor([[math.nan, 1.0]]).double()).isnan().all()
    with pytest.raises(DataError, match="infinity"):
        best_of_n_values(some, torch.tensor([[math.inf, 1.0]]).double())
