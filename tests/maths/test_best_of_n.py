import itertools
import math
from decimal import Decimal
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths import best_of_n

F64 = torch.float64


def harmonic(n: int) -> Fraction:
    return sum((Fraction(1, k) for k in range(1, n + 1)), Fraction(0))


def kl(p, q):
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1).item()


def ties_half_win_rate(p, q, rewards):
    diff = rewards[:, None] - rewards[None, :]
    return (p[:, None] * q[None, :] * ((diff > 0) + 0.5 * (diff == 0))).sum().item()


def enumerate_best_of_n(probs, rewards, n):
    """Draw every n-tuple, keep a best one at random."""
    result = [0.0] * len(probs)
    for draw in itertools.product(range(len(probs)), repeat=n):
        best = max(rewards[i] for i in draw)
        winners = [i for i in draw if rewards[i] == best]
        for i in winners:
            result[i] += math.prod(probs[j] for j in draw) / len(winners)
    return torch.tensor(result, dtype=F64)


probabilities = st.lists(st.integers(1, 20), min_size=1, max_size=8).map(
    lambda weights: torch.tensor(weights, dtype=F64) / sum(weights)
)


@pytest.mark.parametrize(
    ("n", "beta"), [(2, 0.5), (4, 0.0909090909), (8, 0.0275482094), (16, 0.0100455193), (32, 0.0040049790)]
)
def test_ipo_beta_worked_by_hand(n, beta):
    assert best_of_n.ipo_beta(n) == pytest.approx(beta, abs=5e-11)
    exact = 1 / (2 * (n - 1) * harmonic(n - 1))
    assert best_of_n.ipo_beta(n) == pytest.approx(float(exact), rel=1e-14, abs=0)


def test_margin_is_half_the_inverse_of_ipo_beta_and_the_mean_log_quantile_gap():
    assert best_of_n.margin(8) == pytest.approx(18.15, abs=1e-12)
    assert best_of_n.margin(1) == pytest.approx(0.0, abs=1e-15)
    for n in (2, 5, 8, 33):
        assert best_of_n.margin(n) == pytest.approx(1 / (2 * best_of_n.ipo_beta(n)), rel=1e-14, abs=0)
        # (n - 1) (E[log u_best] - E[log u_worst]), E[log u_best] = -1/n, E[log u_worst] = -H_n.
        gap = (n - 1) * (harmonic(n) - Fraction(1, n))
        assert best_of_n.margin(n) == pytest.approx(float(gap), rel=1e-14, abs=0)


def test_real_n_interpolates_integers():
    # H_{1/2} = 2 - 2 log 2, so margin(1.5) is half of it.
    assert best_of_n.margin(1.5) == pytest.approx(1 - math.log(2), rel=1e-14, abs=0)
    assert best_of_n.win_rate(2.5) == pytest.approx(2.5 / 3.5)


def test_continuous_win_rate_and_kl_are_limits_of_a_fine_discrete_reference():
    size, n = 4000, 4
    rewards = torch.arange(size, dtype=F64)
    reference = torch.full((size,), 1 / size, dtype=F64)
    best = best_of_n.distribution(reference, rewards, n)
    win = ties_half_win_rate(best, reference, rewards)
    assert win < best_of_n.win_rate(n) == 0.8
    assert win == pytest.approx(0.8, abs=1e-3)
    assert kl(best, reference) < best_of_n.kl_upper_bound(n)
    assert kl(best, reference) == pytest.approx(best_of_n.kl_upper_bound(n), abs=1e-3)
    assert best_of_n.kl_upper_bound(8) == pytest.approx(1.204, abs=5e-4)
    assert best_of_n.kl_upper_bound(1) == 0


def test_small_references_worked_by_hand():
    best = best_of_n.distribution(torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([1.0, 2, 3]), 2)
    torch.testing.assert_close(best, torch.tensor([0.25, 0.39, 0.36], dtype=F64))
    assert kl(best, torch.tensor([0.5, 0.3, 0.2], dtype=F64)) == pytest.approx(0.1406, abs=5e-5)

    reference = torch.tensor([0.30, 0.22, 0.18, 0.14, 0.10, 0.06], dtype=F64)
    rewards = torch.arange(6.0)
    for n, expected_kl, expected_win in [(2, 0.172376, 0.658760), (4, 0.614577, 0.792650)]:
        best = best_of_n.distribution(reference, rewards, n)
        assert kl(best, reference) == pytest.approx(expected_kl, abs=5e-7)
        assert ties_half_win_rate(best, reference, rewards) == pytest.approx(expected_win, abs=5e-7)


@pytest.mark.parametrize("rewards", [[0, 1, 2, 3], [2, 0, 2, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_distribution_is_what_drawing_every_tuple_gives(rewards, n):
    probs = [0.4, 0.3, 0.2, 0.1]
    exact = best_of_n.distribution(torch.tensor(probs, dtype=F64), torch.tensor(rewards, dtype=F64), n)
    torch.testing.assert_close(exact, enumerate_best_of_n(probs, rewards, n), rtol=0, atol=1e-14)


def test_distribution_equals_both_papers_sums():
    probs = torch.tensor([0.30, 0.22, 0.18, 0.14, 0.10, 0.06], dtype=F64)
    at_or_below, n = probs.cumsum(0), 5
    below = at_or_below - probs
    bond = probs * at_or_below ** (n - 1) * sum((below / at_or_below) ** i for i in range(n))
    vbon = sum(math.comb(n, i) * below ** (n - i) * probs**i for i in range(1, n + 1))
    exact = best_of_n.distribution(probs, torch.arange(6.0), n)
    torch.testing.assert_close(exact, bond, rtol=0, atol=1e-15)
    torch.testing.assert_close(exact, vbon, rtol=0, atol=1e-15)


def test_binary_reward_weights():
    q, n = 0.03, 7
    best = best_of_n.distribution(torch.tensor([1 - q, q], dtype=F64), torch.tensor([0.0, 1.0]), n)
    assert best[1] / q == pytest.approx((1 - (1 - q) ** n) / q, rel=1e-13, abs=0)
    assert best[0] / (1 - q) == pytest.approx((1 - q) ** (n - 1), rel=1e-13, abs=0)


@settings(max_examples=60, deadline=None)
@given(probabilities, st.data(), st.floats(1, 40))
def test_distribution_properties(probs, data, n):
    rewards = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=len(probs), max_size=len(probs))))
    rewards = rewards.to(F64)
    best = best_of_n.distribution(probs, rewards, n)
    assert best.sum().item() == pytest.approx(1, abs=1e-12)
    # Only the order of rewards counts.
    torch.testing.assert_close(best_of_n.distribution(probs, rewards.exp() * 3 - 1, n), best)
    order = torch.tensor(data.draw(st.permutations(range(len(probs)))))
    torch.testing.assert_close(best_of_n.distribution(probs[order], rewards[order], n), best[order])
    # A row's result does not depend on its batch.
    batch = best_of_n.distribution(torch.stack([probs, probs]), torch.stack([rewards, -rewards]), n)
    torch.testing.assert_close(batch[0], best)
    # Outcomes of one class keep their reference proportions.
    tilt = best / probs
    same = rewards[:, None] == rewards[None, :]
    torch.testing.assert_close(
        (tilt[:, None] * same).double(), (tilt[None, :] * same).double(), rtol=1e-9, atol=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(probabilities, st.floats(1, 6), st.floats(1, 6))
def test_best_of_n_of_best_of_m_is_best_of_nm(probs, n, m):
    rewards = (torch.arange(len(probs)) // 2).to(F64)
    twice = best_of_n.distribution(best_of_n.distribution(probs, rewards, m), rewards, n)
    torch.testing.assert_close(twice, best_of_n.distribution(probs, rewards, n * m), rtol=1e-9, atol=1e-12)


def test_best_of_n_is_the_optimum_of_bonds_kl_regularised_objective():
    n = 4
    reference = torch.tensor([0.30, 0.22, 0.18, 0.14, 0.10, 0.06], dtype=F64)
    at_or_below = reference.cumsum(0)
    below = at_or_below - reference
    reward = at_or_below.log() + best_of_n.log_tilt(below / at_or_below, torch.ones(6, dtype=F64), n) / (
        n - 1
    )
    optimum = best_of_n.distribution(reference, torch.arange(6.0), n)
    weights = reference * ((n - 1) * reward).exp()
    assert weights.sum().item() == pytest.approx(1, abs=1e-14)  # the partition function
    torch.testing.assert_close(weights, optimum)

    def objective(policy):
        return (policy * reward).sum().item() - kl(policy, reference) / (n - 1)

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = optimum * torch.exp(0.1 * torch.randn(6, generator=generator, dtype=F64))
        assert objective(other / other.sum()) < objective(optimum)


def test_log_tilt_against_exact_rational_arithmetic():
    cases = [(0, Fraction(1, 3)), (Fraction(1, 2), Fraction(3, 4)), (Fraction(1, 3), 1), (0, 1)]
    cases += [(Fraction(7, 10), Fraction(7, 10) + Fraction(1, 10**k)) for k in (3, 9, 15)]
    for strict, quantile in cases:
        # Python floats as exact rationals: the function's own input, not the decimal meant.
        low, high = Fraction(float(strict)), Fraction(float(quantile))
        for n in (1, 2, 8, 100):
            exact = math.log((high**n - low**n) / (high - low))
            got = best_of_n.log_tilt(
                torch.tensor([float(low)], dtype=F64), torch.tensor([float(high)], dtype=F64), n
            )
            assert got.item() == pytest.approx(exact, abs=2e-13)


def test_log_tilt_is_continuous_at_its_limit():
    u = torch.tensor([0.2, 0.7, 1.0], dtype=F64)
    limit = best_of_n.log_tilt(u, u, 6.5)
    torch.testing.assert_close(limit, math.log(6.5) + 5.5 * u.log())
    torch.testing.assert_close(best_of_n.log_tilt(u - 1e-9, u, 6.5), limit, rtol=0, atol=1e-7)
    zero = torch.zeros(1, dtype=F64)
    assert best_of_n.log_tilt(zero, zero, 3).item() == -math.inf
    assert best_of_n.log_tilt(zero, zero, 1).item() == 0


def test_log_tilt_gradient_matches_finite_differences():
    strict = torch.tensor([0.1, 0.5, 0.30], dtype=F64, requires_grad=True)
    quantile = torch.tensor([0.2, 0.9, 0.31], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, q: best_of_n.log_tilt(s, q, 5.5), (strict, quantile))


def test_log_tilt_upcasts_half_precision():
    half = best_of_n.log_tilt(torch.tensor([0.5]).bfloat16(), torch.tensor([0.75]).bfloat16(), 8)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(math.log((0.75**8 - 0.5**8) / 0.25), rel=1e-5, abs=0)


def frontier(c: float) -> tuple[float, float]:
    """Win rate and KL of pi_ref * exp(c u) in 28 digits, by the formulas of docs/papers.md#the-frontier."""
    c = Decimal(c)
    win = ((c - 1) * c.exp() + 1) / (c * (c.exp() - 1))
    return float(win), float(c * win - ((c.exp() - 1) / c).ln())


@pytest.mark.parametrize("c", [0.1, 0.499, 0.501, 1.0, 3.0, 7.0, 20.0, 200.0])
def test_frontier_is_the_exponential_tilt(c):
    win, spent = frontier(c)
    assert best_of_n.optimal_win_rate(spent) == pytest.approx(win, rel=1e-14, abs=0)
    assert best_of_n.least_kl(win) == pytest.approx(spent, rel=5e-14, abs=0)


def test_bond_without_the_log_lands_on_the_frontier_at_c_seven():
    # r = p<= in place of log p<=, as BOND once prints it, gives pi_ref * exp(7 u) at N = 8: win .858, KL .953.
    assert best_of_n.optimal_win_rate(0.953) == pytest.approx(0.858, abs=5e-4)
    assert best_of_n.win_rate(8) == pytest.approx(0.889, abs=5e-4)


def test_least_kl_inverts_optimal_win_rate_over_its_whole_range():
    spent = torch.cat([torch.logspace(-12, 1, 200, dtype=F64), torch.linspace(1, 25, 50, dtype=F64)])
    win = best_of_n.optimal_win_rate(spent)
    assert (win.diff() > 0).sum() > 200
    # A win rate near .5 or 1 carries only float64's 1e-16 about the KL; allow what that loses.
    slack = 1e-10 + 1e-15 / (win - 0.5) + 1e-15 / (1 - win)
    assert ((best_of_n.least_kl(win) / spent - 1).abs() < slack).all()


def test_least_kl_near_its_ends():
    # Near one half KL = c^2/24, win = 1/2 + c/12, hence 6 (win - 1/2)^2; near one log c - 1, c = 1/(1 - win).
    assert best_of_n.least_kl(0.5 + 1e-6) == pytest.approx(6e-12, rel=1e-9, abs=0)
    assert best_of_n.least_kl(1 - 2.0**-40) == pytest.approx(40 * math.log(2) - 1, rel=1e-12, abs=0)
    assert best_of_n.least_kl(1.0) == math.inf
    assert best_of_n.least_kl(0.5) == best_of_n.least_kl(0.3) == best_of_n.least_kl(0) == 0
    assert math.isnan(best_of_n.least_kl(math.nan))
    assert best_of_n.optimal_win_rate(0.0) == 0.5
    assert best_of_n.optimal_win_rate(1e9) == 1
    assert math.isnan(best_of_n.optimal_win_rate(math.nan))


@pytest.mark.parametrize(("n", "distance"), [(2, 0.0092), (4, 0.0040), (8, 0.0008), (16, 0.0001)])
def test_best_of_n_lies_this_far_below_the_frontier(n, distance):
    below = best_of_n.optimal_win_rate(best_of_n.kl_upper_bound(n)) - best_of_n.win_rate(n)
    assert below == pytest.approx(distance, abs=5.1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.floats(-5, 5), st.floats(-5, 5))
def test_no_policy_beats_the_frontier(mass, a, b):
    u = (torch.arange(500, dtype=F64) + 0.5) / 500
    policy = torch.tensor(mass, dtype=F64).repeat_interleave(200)[:500] * (a * u + b * u**2).exp()
    policy = policy / policy.sum()
    spent = max(0.0, kl(policy, torch.full_like(u, 1 / 500)))  # rounding may leave -1e-17
    assert (policy * u).sum().item() <= best_of_n.optimal_win_rate(spent) + 1e-6


@given(st.floats(1, 1e4))
@settings(max_examples=30, deadline=None)
def test_equivalent_n_inverts_win_rate(n):
    assert best_of_n.equivalent_n(best_of_n.win_rate(n)) == pytest.approx(n, rel=1e-9, abs=0)


def test_numbers_give_floats_and_tensors_give_tensors_of_their_dtype():
    functions = [
        best_of_n.win_rate, best_of_n.kl_upper_bound, best_of_n.margin, best_of_n.ipo_beta,
        best_of_n.optimal_win_rate,
    ]  # fmt: skip
    for function in functions:
        values = torch.tensor([[2.0, 3.0], [5.5, 9.0]])
        assert type(function(3)) is float
        assert function(values).dtype == torch.float32
        assert function(values.bfloat16()).dtype == torch.float32
        torch.testing.assert_close(function(values)[1, 0].item(), function(5.5), rtol=1e-6, atol=0)
        assert function(torch.tensor([3])).item() == pytest.approx(function(3), rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (best_of_n.win_rate, 0.5, "n = 0.5"),
        (best_of_n.kl_upper_bound, math.inf, "n = inf"),
        (best_of_n.margin, math.nan, "n = nan"),
        (best_of_n.ipo_beta, 1, "above 1"),
        (best_of_n.optimal_win_rate, -0.1, "kl = -0.1"),
        (best_of_n.least_kl, 66.0, "percentage"),
        (best_of_n.equivalent_n, torch.tensor([0.5, -0.2]), "win_rate = -0.2"),
    ],
)
def test_arguments_out_of_range_are_named(function, value, words):
    with pytest.raises(ConfigError, match=words):
        function(value)


def test_distribution_refuses_what_has_no_rank_or_no_sum():
    probs = torch.tensor([0.5, 0.5])
    with pytest.raises(DataError, match="NaN"):
        best_of_n.distribution(probs, torch.tensor([1.0, math.nan]), 2)
    with pytest.raises(DataError, match=r"sum to 1\.5"):
        best_of_n.distribution(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 2.0]), 2)
    with pytest.raises(ConfigError, match="n = 0"):
        best_of_n.distribution(probs, torch.tensor([1.0, 2.0]), 0)
