import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError
from nonpareil.maths import best_of_n
from nonpareil.maths import kl as kl_module

F64 = torch.float64
ALL_PROBS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)


def test_token_kl_by_hand():
    policy = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=F64).log()
    reference = torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=F64).log() + 3  # logits have no fixed level
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0]
    torch.testing.assert_close(kl_module.token_kl(policy, reference), torch.tensor(expected, dtype=F64))


def test_token_kl_of_bfloat16_logits_is_worked_out_in_float32():
    generator = torch.Generator().manual_seed(0)
    policy = (20 * torch.randn(4, 7, 1000, generator=generator)).bfloat16()
    reference = (policy + 0.5 * torch.randn(4, 7, 1000, generator=generator)).bfloat16()
    got = kl_module.token_kl(policy, reference)
    assert got.dtype == torch.float32
    assert got.shape == (4, 7)
    exact = kl_module.token_kl(policy.double(), reference.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-6)


def test_token_kl_gradient_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(2, 5, dtype=F64, generator=generator, requires_grad=True)
    reference = torch.randn(2, 5, dtype=F64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(kl_module.token_kl, (policy, reference))


def test_token_kl_with_tokens_ruled_out():
    logits = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    both = kl_module.token_kl(logits, torch.tensor([0.0, 2.0, -math.inf]))
    torch.testing.assert_close(both, kl_module.token_kl(logits[:2], torch.tensor([0.0, 2.0])))
    both.backward()
    assert logits.grad.isfinite().all()
    assert kl_module.token_kl(logits, torch.zeros(3)).isfinite()
    assert kl_module.token_kl(torch.zeros(3), logits.detach()).item() == math.inf


def enumerated(estimator, logits):
    """The estimator's expected loss over all outcomes, samples fixed, differentiated through log pi."""
    log_probs = logits.log_softmax(-1)
    log_ratio = log_probs - ALL_PROBS.log()
    expected_loss = (log_probs.exp().detach() * estimator(log_ratio)).sum()
    (gradient,) = torch.autograd.grad(expected_loss, logits)
    return expected_loss.item(), gradient


@pytest.fixture
def logits():
    return torch.tensor([0.3, -0.4, 1.2, 0.1], dtype=F64, requires_grad=True)


@pytest.fixture
def reverse_kl(logits):
    value = kl_module.token_kl(logits, ALL_PROBS.log())
    return value.item(), torch.autograd.grad(value, logits)[0]


def test_k1_is_unbiased_and_has_no_gradient_as_a_loss(logits, reverse_kl):
    value, gradient = enumerated(kl_module.k1, logits)
    assert value == pytest.approx(reverse_kl[0], abs=1e-15)
    assert gradient.abs().max() < 1e-15
    assert kl_module.k1(torch.tensor([-2.0])).item() == -2  # never clamped


def test_k2_has_the_reverse_kls_gradient_but_not_its_value(logits, reverse_kl):
    value, gradient = enumerated(kl_module.k2, logits)
    torch.testing.assert_close(gradient, reverse_kl[1])
    assert abs(value - reverse_kl[0]) > 0.01


def test_k3_is_unbiased_but_has_the_forward_kls_gradient(logits, reverse_kl):
    value, gradient = enumerated(kl_module.k3, logits)
    assert value == pytest.approx(reverse_kl[0], abs=1e-15)
    forward = (ALL_PROBS * (ALL_PROBS.log() - logits.log_softmax(-1))).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(forward, logits)[0])
    assert (gradient - reverse_kl[1]).abs().max() > 0.01


@given(st.floats(-20, 20))
@settings(max_examples=40, deadline=None)
def test_k2_and_k3_are_never_negative(log_ratio):
    value = torch.tensor([log_ratio], dtype=F64)
    assert kl_module.k2(value).item() >= 0
    assert kl_module.k3(value).item() >= -1e-15


@pytest.mark.parametrize("e", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("n", [2, 4, 16])
def test_best_of_n_kl_is_exact_for_an_atom_above_a_continuum(e, n):
    size = 20_000
    reference = torch.cat([torch.full((size,), (1 - e) / size, dtype=F64), torch.tensor([e], dtype=F64)])
    best = best_of_n.distribution(reference, torch.arange(size + 1.0, dtype=F64), n)
    exact = (best * (best / reference).log()).sum().item()
    estimate = kl_module.best_of_n_kl(torch.tensor([e], dtype=F64), n).item()
    assert estimate == pytest.approx(exact, abs=2e-4)


def test_best_of_n_kl_at_its_ends():
    ends = kl_module.best_of_n_kl(torch.tensor([0.0, 1e-300, 1.0], dtype=F64), 8)
    bound = best_of_n.kl_upper_bound(8)
    torch.testing.assert_close(ends, torch.tensor([bound, bound, 0.0], dtype=F64), rtol=0, atol=1e-14)
    torch.testing.assert_close(kl_module.best_of_n_kl(torch.rand(5, dtype=F64), 1), torch.zeros(5, dtype=F64))


def test_best_of_n_kl_never_exceeds_the_bound_and_is_closer_on_a_small_reference():
    reference = torch.tensor([0.30, 0.22, 0.18, 0.14, 0.10, 0.06], dtype=F64)
    for n in (2, 4, 8):
        best = best_of_n.distribution(reference, torch.arange(6.0), n)
        exact = (best * (best / reference).log()).sum().item()
        estimate = (best * kl_module.best_of_n_kl(reference, n)).sum().item()
        assert estimate <= best_of_n.kl_upper_bound(n)
        assert abs(estimate - exact) < abs(best_of_n.kl_upper_bound(n) - exact)


def test_best_of_n_kl_refuses_log_probabilities():
    with pytest.raises(ConfigError, match=r"best_probs = -3: .* exponentiate"):
        kl_module.best_of_n_kl(torch.tensor([-3.0]), 4)
    with pytest.raises(ConfigError, match=r"n = 0\.5"):
        kl_module.best_of_n_kl(torch.tensor([0.5]), 0.5)
