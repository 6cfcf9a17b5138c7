import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.errors import ConfigError
from nonpareil.maths import best_of_n, losses

F64 = torch.float64
REFERENCE = torch.tensor([0.30, 0.22, 0.18, 0.14, 0.10, 0.06], dtype=F64)
N = 4
BEST = best_of_n.distribution(REFERENCE, torch.arange(6.0), N)


@pytest.fixture
def logits():
    return torch.tensor([0.3, -0.4, 1.2, 0.1, 0.0, -1.0], dtype=F64, requires_grad=True)


def test_forward_loss_over_best_of_n_samples_has_the_forward_kls_gradient(logits):
    loss = (BEST * losses.forward_kl_loss(logits.log_softmax(-1))).sum()
    kl = (BEST * (BEST.log() - logits.log_softmax(-1))).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(kl, logits))


def sequences(probs):
    """Probability of each of the 27 sequences of three tokens, and log-probs of their tokens, [27, 3]."""
    first, second, third = probs  # [3], [3, 3], [3, 3, 3]: each token knows those before it
    places = torch.cartesian_prod(*[torch.arange(3)] * 3)
    i, j, k = places.T
    tokens = torch.stack([first[i], second[i, j], third[i, j, k]], -1)
    return tokens.exp().prod(-1), tokens


def trees(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*[3] * depth, generator=generator, dtype=F64) for depth in (1, 2, 3)]


def test_kl_from_the_reference_by_token_is_that_of_whole_sequences_in_value_and_gradient():
    reference = [tree.log_softmax(-1) for tree in trees(0)]
    chance, anchored = sequences(reference)
    leaves = [tree.requires_grad_() for tree in trees(1)]
    _, ours = sequences([tree.log_softmax(-1) for tree in leaves])
    found = (chance * losses.kl_from_reference_loss(ours, anchored)).sum()
    exact = (chance * (anchored.sum(-1) - ours.sum(-1))).sum()
    torch.testing.assert_close(found, exact)
    for one, other in zip(
        torch.autograd.grad(found, leaves, retain_graph=True), torch.autograd.grad(exact, leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_kl_from_the_reference_is_at_rest_for_every_sample_where_policy_and_reference_are_one():
    logprobs = torch.tensor([[-1.0, -2.5, 0.0]], dtype=F64, requires_grad=True)
    loss = losses.kl_from_reference_loss(logprobs, logprobs.detach())
    assert loss.tolist() == [0.0]
    assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == [[0.0, 0.0, 0.0]]


def test_imitation_loss_by_hand():
    """rho = 2 and 1/2: each token's KL is rho - 1 - log rho, and its gradient rho - 1."""
    reference = torch.tensor([[-1.0, -1.0]], dtype=F64)
    logprobs = (reference + torch.tensor([[math.log(2), -math.log(2)]])).requires_grad_()
    loss = losses.imitation_loss(
        logprobs, reference, torch.tensor([0.5]).double(), torch.tensor([0.25]).double()
    )
    assert loss.item() == pytest.approx(0.5 * 2.0 + 0.25 * (1 - math.log(2) - 0.5 + math.log(2)))
    gradient = torch.autograd.grad(loss.sum(), logprobs)[0]
    torch.testing.assert_close(gradient, torch.tensor([[-0.5 + 0.25, -0.5 - 0.125]], dtype=F64))


def test_policy_gradient_over_policy_samples_has_bonds_backward_kl_gradient(logits):
    log_probs = logits.log_softmax(-1)
    backward = (log_probs.exp() * (log_probs - BEST.log())).sum()
    # BOND's return, (N-1) (r_BOND - log_ratio / (N-1)), minus any baseline.
    advantages = best_of_n.log_tilt(REFERENCE.cumsum(0) - REFERENCE, REFERENCE.cumsum(0), N) - (
        log_probs - REFERENCE.log()
    )
    loss = (log_probs.exp().detach() * losses.policy_gradient_loss(log_probs, advantages - 0.7)).sum()
    (exact,) = torch.autograd.grad(backward, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], exact)


def test_policy_gradient_loss_by_hand_and_detached():
    logprobs = torch.tensor([-2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.0], requires_grad=True)
    loss = losses.policy_gradient_loss(logprobs, advantages)
    assert loss.tolist() == [1.0, -3.0]
    loss.sum().backward()
    assert logprobs.grad.tolist() == [-0.5, 1.0]
    assert advantages.grad is None


def test_leave_one_out_by_hand():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert losses.leave_one_out_mean(values).tolist() == [4.0, 3.5, 1.5]
    assert losses.leave_one_out_mean(torch.tensor([5.0])).tolist() == [0.0]
    mask = torch.tensor([True, False, True])
    failed = torch.tensor([1.0, math.nan, 6.0])
    assert losses.leave_one_out_mean(failed, mask).tolist() == [6.0, 3.5, 1.0]
    assert losses.leave_one_out_mean(failed, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=8))
def test_leave_one_out_is_the_mean_of_the_others(entries):
    values = torch.tensor([value for value, _ in entries], dtype=F64)
    mask = torch.tensor([valid for _, valid in entries])
    got = losses.leave_one_out_mean(values, mask)
    for i in range(len(entries)):
        others = [v for j, (v, valid) in enumerate(entries) if j != i and valid]
        assert got[i].item() == pytest.approx(sum(others) / len(others) if others else 0.0, abs=1e-10)


def test_margin_loss_by_hand_and_gradient():
    best = torch.tensor([2.0, 10.0], dtype=F64, requires_grad=True)
    worst = torch.tensor([1.0, -8.15], dtype=F64, requires_grad=True)
    # margin(2) = 1, margin(8) = 18.15.
    assert losses.pairwise_margin_loss(best, worst, 2)[0].item() == pytest.approx(0, abs=1e-15)
    assert losses.pairwise_margin_loss(best, worst, 8)[1].item() == pytest.approx(0, abs=1e-15)
    assert losses.pairwise_margin_loss(best, worst, 8)[0].item() == pytest.approx(17.15**2)
    assert torch.autograd.gradcheck(lambda b, w: losses.pairwise_margin_loss(b, w, 5), (best, worst))


def test_margin_loss_of_the_exact_best_of_8_policy_is_about_74():
    u = torch.rand(400_000, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    quantile = torch.stack([u.amax(-1), u.amin(-1)])
    log_ratio = best_of_n.log_tilt(quantile, quantile, 8)
    loss = losses.pairwise_margin_loss(log_ratio[0], log_ratio[1], 8).mean().item()
    # The gap is a sum of independent exponentials of means 1/j: variance 49 * sum_{j<8} 1/j^2 = 74.07.
    assert 49 * sum(1 / j**2 for j in range(1, 8)) == pytest.approx(74.07, abs=0.02)
    assert loss == pytest.approx(74.07, abs=1)


def test_jeffreys_weighs_the_backward_term():
    forward, backward = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    assert losses.jeffreys(forward, backward, 0).tolist() == [1.0, 2.0]
    assert losses.jeffreys(forward, backward, 1).tolist() == [10.0, 20.0]
    torch.testing.assert_close(losses.jeffreys(forward, backward, 0.25), torch.tensor([3.25, 6.5]))


def test_jeffreys_gradient_vanishes_at_best_of_n_only(logits):
    def gradient(start):
        start = start.detach().requires_grad_()
        log_probs = start.log_softmax(-1)
        probs = log_probs.exp().detach()
        forward = (BEST * losses.forward_kl_loss(log_probs)).sum()
        backward = (probs * losses.policy_gradient_loss(log_probs, BEST.log() - log_probs)).sum()
        return torch.autograd.grad(losses.jeffreys(forward, backward, 0.5), start)[0].abs().max().item()

    assert gradient(BEST.log()) < 1e-15
    assert gradient(logits) > 0.01


# Ratios now over then of three tokens of a good and a bad completion, the last one of the second behind its end.
RATIO = torch.tensor([[1.5, 1.1, 0.5], [0.5, 1.5, 9.0]], dtype=F64)
KEPT = torch.tensor([[True, True, True], [True, True, False]])


def test_clipped_loss_by_hand():
    sampled = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.1, 0.0]], dtype=F64)
    advantages = torch.tensor([2.0, -1.0], dtype=F64, requires_grad=True)
    now = (sampled + RATIO.log()).requires_grad_()
    loss = losses.clipped_policy_gradient_loss(now, sampled, advantages, 0.2, KEPT)
    # Good: min(1.5, 1.2) + 1.1 + min(.5, .8), times 2. Bad: max(.5, .8) + max(1.5, 1.2), times 1.
    torch.testing.assert_close(loss, torch.tensor([-2 * (1.2 + 1.1 + 0.5), 0.8 + 1.5], dtype=F64))
    (gradient,) = torch.autograd.grad(loss.sum(), now)
    expected = torch.tensor([[0.0, -2 * 1.1, -2 * 0.5], [0.0, 1.5, 0.0]], dtype=F64)
    torch.testing.assert_close(gradient, expected)
    assert advantages.grad is None


def test_clipped_loss_has_the_plain_gradient_on_the_policy_that_drew():
    sampled = torch.tensor([[[-1.0, -2.0], [-0.5, 0.0]]], dtype=F64)  # [b, k, t]
    advantages = torch.tensor([[0.7, -1.3]], dtype=F64)
    now = sampled.clone().requires_grad_()
    clipped = losses.clipped_policy_gradient_loss(now, sampled, advantages, 0.1, sampled < 0)
    plain = losses.policy_gradient_loss((now * (sampled < 0)).sum(-1), advantages)
    assert clipped.shape == plain.shape == (1, 2)
    torch.testing.assert_close(torch.autograd.grad(clipped.sum(), now), torch.autograd.grad(plain.sum(), now))


def test_logistic_loss_by_hand_and_gradient():
    best = torch.tensor([0.0, 2.0], dtype=F64, requires_grad=True)
    worst = torch.tensor([0.0, -1.0], dtype=F64, requires_grad=True)
    # ipo_beta(2) = 1/2.
    expected = torch.tensor([math.log(2), math.log1p(math.exp(-1.5))], dtype=F64)
    torch.testing.assert_close(losses.pairwise_logistic_loss(best, worst, 2), expected)
    assert torch.autograd.gradcheck(lambda b, w: losses.pairwise_logistic_loss(b, w, 5), (best, worst))


def test_logistic_loss_keeps_pushing_where_the_margin_loss_is_satisfied():
    margin = best_of_n.margin(8)
    gap = torch.tensor([margin, 3 * margin], dtype=F64, requires_grad=True)
    zero = torch.zeros(2, dtype=F64)
    (pushed,) = torch.autograd.grad(losses.pairwise_logistic_loss(gap, zero, 8).sum(), gap)
    assert (pushed < 0).all()
    (held,) = torch.autograd.grad(losses.pairwise_margin_loss(gap, zero, 8).sum(), gap)
    assert held[0].item() == pytest.approx(0, abs=1e-12)
    assert held[1] > 0
    # At the start its gradient is beta / 2 against 1 / beta: some 2,600 times smaller.
    start = torch.zeros(1, dtype=F64, requires_grad=True)
    first = [
        torch.autograd.grad(loss(start, zero[:1], 8).sum(), start)[0].item()
        for loss in (losses.pairwise_margin_loss, losses.pairwise_logistic_loss)
    ]
    assert first[0] / first[1] == pytest.approx(2635, abs=1)


def test_regression_loss_by_hand_and_detached():
    log_ratio = torch.tensor([[1.0, -2.0]], requires_grad=True)
    target = torch.tensor([[3.0, -2.0]], requires_grad=True)
    loss = losses.log_ratio_regression_loss(log_ratio, target)
    assert loss.tolist() == [[2.0, 0.0]]
    loss.sum().backward()
    assert log_ratio.grad.tolist() == [[-2.0, 0.0]]
    assert target.grad is None


def test_regression_on_the_policys_own_draws_has_the_backward_kls_gradient(logits):
    log_probs = logits.log_softmax(-1)
    target = best_of_n.log_tilt(REFERENCE.cumsum(0) - REFERENCE, REFERENCE.cumsum(0), N)
    squared = losses.log_ratio_regression_loss(log_probs - REFERENCE.log(), target)
    loss = (log_probs.exp().detach() * squared).sum()
    kl = (log_probs.exp() * (log_probs - BEST.log())).sum()
    (expected,) = torch.autograd.grad(kl, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_bad_arguments_are_named():
    zeros = torch.zeros(2)
    with pytest.raises(ConfigError, match="n = 1: must be at least 2"):
        losses.pairwise_logistic_loss(zeros, zeros, 1)
    with pytest.raises(ConfigError, match="n = 1: must be at least 2"):
        losses.pairwise_margin_loss(zeros, zeros, 1)
    with pytest.raises(ConfigError, match=r"jeffreys_weight = 1\.5"):
        losses.jeffreys(zeros, zeros, 1.5)


def test_margin_loss_alone_does_not_recover_best_of_8():
    # Its population minimiser has win rate .814 and KL .879 in place of .889 and 1.204.
    size, n = 150, 8
    u = (torch.arange(size, dtype=F64) + 0.5) / size
    best, worst = torch.tril_indices(size, size, offset=-1)
    weight = (u[best] - u[worst]) ** (n - 2)  # density of (best, worst) of n uniforms
    log_ratio = torch.zeros(size, dtype=F64, requires_grad=True)

    def gradient(at):
        loss = losses.pairwise_margin_loss(at[best], at[worst], n)
        return torch.autograd.grad((weight * loss).sum() / weight.sum(), at, create_graph=True)[0]

    # The loss is quadratic: one Newton step from anywhere lands on its minimum (flat along the constant).
    hessian = torch.autograd.functional.jacobian(gradient, log_ratio)
    step = torch.linalg.lstsq(hessian + 1 / size, gradient(log_ratio).detach()[:, None]).solution[:, 0]
    policy = (log_ratio.detach() - step).softmax(-1)
    assert (policy * u).sum().item() == pytest.approx(0.814, abs=1e-3)
    assert (policy * (policy * size).log()).sum().item() == pytest.approx(0.879, abs=3e-3)
