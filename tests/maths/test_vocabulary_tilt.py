"""A tilt against enumeration: of three states with five tokens, and of all completions of a small policy."""

import itertools
import math

import pytest
import torch

from nonpareil.maths.vocabulary_tilt import (
    MOST_EXPONENT,
    TiltFamily,
    at_strength,
    effective_samples,
    first_reaching,
    kl_at_strength,
    mean_advantages,
    strength_grid,
)

V, LENGTH = 3, 3


@pytest.fixture
def states():
    """Laws [s, v] of three states, how often each comes [s], and advantages [s, v] of mean 0 under each law."""
    generator = torch.Generator().manual_seed(3)
    probs = torch.randn(3, 5, generator=generator).double().softmax(-1)
    visits = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    values = torch.randn(3, 5, generator=generator).double()
    return probs, visits, values - (probs * values).sum(-1, keepdim=True)


def expected_advantage(bias, probs, visits, advantages):
    return (visits[:, None] * (probs.log() + bias).softmax(-1) * advantages).sum()


def divergence(bias, probs, visits):
    return (visits[:, None] * probs * (probs.log() - (probs.log() + bias).log_softmax(-1))).sum()


def test_the_count_is_the_natural_gradient_of_an_output_bias_with_fishers_diagonal(states):
    probs, visits, advantages = states
    zero = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(expected_advantage(zero, *states), zero)
    fisher = torch.autograd.functional.hessian(lambda bias: divergence(bias, probs, visits), zero.detach())
    counts = (visits[:, None] * probs).sum(0)
    torch.testing.assert_close(gradient, (visits[:, None] * probs * advantages).sum(0))
    together = torch.einsum("s,sa,sb->ab", visits, probs, probs)
    torch.testing.assert_close(fisher, counts.diag() - together)

    exact = torch.linalg.lstsq(fisher, gradient, driver="gelsd").solution
    dropped = together @ exact  # E_ref sum_t pi_ref(a | s_t) bbar(s_t)
    torch.testing.assert_close(counts * exact, gradient + dropped)
    counted = mean_advantages(gradient, counts, 0.0)
    assert (counted - exact).std() > 0.01, "three laws: what the diagonal drops is no constant"
    torch.testing.assert_close(counted, exact - dropped / counts)


def test_where_all_states_have_one_law_the_count_is_the_exact_step(states):
    probs, visits, advantages = (each[:1] for each in states)
    counts = (visits[:, None] * probs).sum(0)
    fisher = counts.diag() - visits[0] * probs[0, :, None] * probs[0]
    exact = torch.linalg.lstsq(fisher, (visits[:, None] * probs * advantages).sum(0), driver="gelsd").solution
    counted = mean_advantages((visits[:, None] * probs * advantages).sum(0), counts, 0.0)
    difference = counted - exact
    torch.testing.assert_close(difference, difference.mean().expand(5))


def test_damping_keeps_rare_tokens_where_they_are():
    tilt = mean_advantages(torch.tensor([2.0, 0.5, 0.0]), torch.tensor([90.0, 1.0, 0.0]), 10.0)
    torch.testing.assert_close(tilt, torch.tensor([2 / 100, 0.5 / 11, 0.0]))


@pytest.fixture
def chain():
    """Every completion of three tokens [n, t], logits before each [n, t, v], log-probs [n] and quantiles [n]."""
    generator = torch.Generator().manual_seed(5)
    first, later = torch.randn(V, generator=generator), torch.randn(V, V, generator=generator)
    tokens = torch.tensor(list(itertools.product(range(V), repeat=LENGTH)))
    logits = torch.stack([first.expand(len(tokens), V), later[tokens[:, 0]], later[tokens[:, 1]]], 1)
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(1).double()
    rewards = torch.randn(len(tokens), generator=generator)
    below = (rewards[None] < rewards[:, None]).double() @ logprobs.exp()
    return tokens, logits, logprobs, below + logprobs.exp() / 2


def test_a_drawn_tokens_quantile_is_its_advantage_and_how_good_its_states_are(chain):
    """The expectation of what is counted without a value, token by token."""
    tokens, _, logprobs, quantile = chain
    counted = torch.zeros(V, dtype=torch.float64)
    for t in range(LENGTH):
        counted.index_add_(0, tokens[:, t], logprobs.exp() * (quantile - 0.5))
    meant = torch.zeros(V, dtype=torch.float64)
    for t in range(LENGTH):
        for prefix in itertools.product(range(V), repeat=t):
            here = (tokens[:, :t] == torch.tensor(prefix, dtype=torch.long)).all(1)
            mass = logprobs.exp() * here
            value = (mass * quantile).sum() / mass.sum()
            for a in range(V):
                chosen = mass * (tokens[:, t] == a)
                advantage = (chosen * quantile).sum() / chosen.sum() - value
                meant[a] += chosen.sum() * (advantage + value - 0.5)
    torch.testing.assert_close(counted, meant)


def test_the_path_is_that_of_the_tilted_policies(chain):
    tokens, logits, logprobs, quantile = chain
    tilt, strengths = torch.tensor([0.7, -0.4, 0.1]), torch.tensor([0.5, 1.0, 3.0])
    family = TiltFamily(tilt, strengths)
    log_ratio, kl = torch.zeros(len(tokens), 3).double(), torch.zeros(len(tokens), 3).double()
    for t in range(LENGTH):
        ratios, step_kls = family.steps(logits[:, t], tokens[:, t])
        log_ratio, kl = log_ratio + ratios, kl + step_kls
    for g, strength in enumerate(strengths):
        tilted = (logits + strength * tilt).log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(1)
        torch.testing.assert_close(log_ratio[:, g], tilted.double() - logprobs, atol=1e-5, rtol=1e-5)
        # Weighted draws of the reference stand for those of the tilted policy.
        weights = logprobs.exp() * log_ratio[:, g].exp()
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        exact = (tilted.exp().double() * (tilted.double() - logprobs)).sum()
        assert (weights * kl[:, g]).sum() == pytest.approx(float(exact), abs=1e-5)
        won = (tilted.exp().double() * quantile).sum()
        assert (weights * quantile).sum() == pytest.approx(float(won), abs=1e-5)


def test_a_large_tilt_stays_a_number():
    tilt = torch.tensor([MOST_EXPONENT, 0.0, -5.0])
    log_ratio, kl = TiltFamily(tilt, torch.tensor([1.0])).steps(torch.zeros(1, 3), torch.tensor([0]))
    assert log_ratio.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-5)
    assert kl.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-4)


def test_the_grid_ends_where_the_kl_is_about_what_was_asked():
    tilt = torch.tensor([1.0, -1.0]) * 0.01
    grid = strength_grid(tilt.double(), torch.tensor([500.0, 500.0]).double(), 20.0, 0.1, 4)
    torch.testing.assert_close(grid, grid[0] * torch.arange(1, 5))
    _, kl = TiltFamily(tilt, grid.float()).steps(torch.zeros(1, 2), torch.tensor([0]))
    assert 20 * kl[0, -1].item() == pytest.approx(0.1, rel=0.01)
    assert (
        strength_grid(torch.tensor([1e9, 0.0]).double(), torch.tensor([0.0, 9.0]).double(), 2.0, 6.0, 2)[-1]
        == 1
    )
    wide = strength_grid(torch.tensor([1e3, 0.0]).double(), torch.tensor([1e-9, 9.0]).double(), 2.0, 6.0, 2)
    assert wide[-1] * 1e3 == pytest.approx(MOST_EXPONENT)


def test_between_strengths_values_lie_on_straight_lines_from_0():
    strengths = torch.tensor([1.0, 2.0])
    values = torch.tensor([[2.0, 3.0]])
    for strength, value in ((0.5, 1.0), (1.0, 2.0), (1.5, 2.5), (2.0, 3.0)):
        assert at_strength(values, strengths, strength).item() == pytest.approx(value)
    assert first_reaching([0.6, 0.7], [1.0, 2.0], 0.55, 0.5) == pytest.approx(0.5)
    assert first_reaching([0.6, 0.7], [1.0, 2.0], 0.65, 0.5) == pytest.approx(1.5)
    assert first_reaching([0.6, 0.7], [1.0, 2.0], 0.71, 0.5) is None
    assert first_reaching([], [], 0.6, 0.5) is None


def test_between_strengths_the_kl_grows_with_the_square():
    """Exactly where it is c s^2, the first piece from 0 too; a coin that is tilted has s tanh s - log cosh s."""
    strengths = torch.tensor([1.0, 2.0, 4.0])
    kl = 0.3 * strengths.square()[None]
    for strength in (0.25, 1.0, 1.5, 3.0, 4.0):
        assert kl_at_strength(kl, strengths, strength).item() == pytest.approx(0.3 * strength**2)

    def coin(s):
        return s * math.tanh(s) - math.log(math.cosh(s))

    table = torch.tensor([[coin(0.2), coin(0.4)]], dtype=torch.float64)
    found = kl_at_strength(table, torch.tensor([0.2, 0.4]).double(), 0.1).item()
    assert found == pytest.approx(coin(0.1), rel=0.02)
    assert kl_at_strength(torch.tensor([[-1e-9]]), torch.tensor([1.0]), 0.5).item() == 0  # of rounding


def test_equal_weights_count_in_full_and_one_that_outweighs_all_counts_alone():
    ratios = torch.tensor([[0.3, 50.0, 0.0], [0.3, 0.0, 0.0], [0.3, 0.0, -50.0], [0.3, 0.0, -50.0]]).double()
    assert effective_samples(ratios).tolist() == pytest.approx([4, 1, 2])
