"""Targets of a few candidates against the whole vocabulary's: exact, unbiased over all draws; their gradient."""

import itertools
from functools import partial

import pytest
import torch

from nonpareil.maths import tilted_targets
from nonpareil.maths.kl import token_kl
from nonpareil.maths.tilted_targets import (
    LEAST_NORMALISER,
    candidate_log_ratios,
    excess_and_normaliser,
    target_kl,
    tilted_cross_entropy,
)
from nonpareil.maths.vocabulary_sums import next_token_candidates

F64 = torch.float64
REFERENCE = torch.tensor([[0.9, -0.4, 0.3, -1.2, 0.1]], dtype=F64)
POLICY = torch.tensor([[-0.3, 0.8, 0.2, 0.4, -0.9]], dtype=F64)
ADVANTAGES = torch.tensor([[0.7, -0.3, 0.6, -1.4, 0.2]], dtype=F64)
EVERY = torch.arange(5)[None]
BETA = 1.3


def loss_of(policy, token_ids, weights, advantages, most=10.0):
    excess, normaliser = excess_and_normaliser(weights, advantages, BETA, most)
    return tilted_cross_entropy(*candidate_log_ratios(policy, REFERENCE, token_ids), excess, normaliser)


def gradient(function, point):
    point = point.clone().requires_grad_()
    return torch.autograd.grad(function(point).sum(), point)[0]


def test_with_the_whole_vocabulary_it_is_the_cross_entropy_to_the_tilted_distribution():
    pi_ref = REFERENCE.softmax(-1)
    target = (REFERENCE + BETA * ADVANTAGES).softmax(-1)
    excess, normaliser = excess_and_normaliser(pi_ref, ADVANTAGES, BETA, 10.0)
    torch.testing.assert_close(tilted_targets.tilted_targets(REFERENCE, EVERY, excess, normaliser), target)

    by_hand = (target * (REFERENCE.log_softmax(-1) - POLICY.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(loss_of(POLICY, EVERY, pi_ref, ADVANTAGES), by_hand)
    ours = gradient(lambda z: loss_of(z, EVERY, pi_ref, ADVANTAGES), POLICY)
    torch.testing.assert_close(ours, POLICY.softmax(-1) - target)
    of_kl = gradient(lambda z: token_kl((REFERENCE + BETA * ADVANTAGES), z), POLICY)
    torch.testing.assert_close(ours, of_kl)


def test_at_the_reference_it_is_0_and_at_the_target_least():
    pi_ref = REFERENCE.softmax(-1)
    assert loss_of(REFERENCE, EVERY, pi_ref, ADVANTAGES).item() == 0
    kl = target_kl(pi_ref, ADVANTAGES, BETA, 10.0)
    torch.testing.assert_close(kl, token_kl(REFERENCE + BETA * ADVANTAGES, REFERENCE))
    torch.testing.assert_close(loss_of(REFERENCE + BETA * ADVANTAGES, EVERY, pi_ref, ADVANTAGES), -kl)


def every_choice(kept, drawn_from_tail):
    """All that candidates can be, beside token 1 and the likeliest other, with their chances."""
    probs = REFERENCE.softmax(-1)[0]
    tail = [a for a in range(5) if a not in kept]
    for order in itertools.permutations(tail, drawn_from_tail):
        left, chance = probs[tail].sum(), 1.0
        noise = torch.full((1, 5), -50.0, dtype=F64)
        for place, token in enumerate(order):
            chance, left = chance * probs[token] / left, left - probs[token]
            noise[0, token] = 50.0 - 10 * place
        yield chance, next_token_candidates(REFERENCE, torch.tensor([1]), noise, 1, drawn_from_tail)


@pytest.mark.parametrize("drawn_from_tail", [1, 2])
def test_sampled_tails_are_unbiased_up_to_the_normaliser(drawn_from_tail):
    """Over everything that can be drawn: the target's numerator, and loss and gradient times Z."""
    target = REFERENCE.softmax(-1) * (BETA * ADVANTAGES).exp()
    numerator, loss, slope = torch.zeros_like(target), 0.0, torch.zeros_like(POLICY)
    total, least = 0.0, torch.inf
    for chance, (token_ids, _, weights) in every_choice((0, 1), drawn_from_tail):
        values, chosen = ADVANTAGES.gather(-1, token_ids), {"token_ids": token_ids, "weights": weights}
        excess, normaliser = excess_and_normaliser(weights, values, BETA, 10.0)
        q = tilted_targets.tilted_targets(REFERENCE, token_ids, excess, normaliser)
        torch.testing.assert_close(q.sum(-1), torch.ones(1, dtype=F64))
        numerator += chance * normaliser * q
        loss += chance * normaliser * loss_of(POLICY, **chosen, advantages=values)
        slope += chance * normaliser * gradient(partial(loss_of, **chosen, advantages=values), POLICY)
        total, least = total + chance, min(least, q.min().item())
    assert total == pytest.approx(1)
    assert least < 0, "some target is negative at a token"
    torch.testing.assert_close(numerator, target)
    mass = target.sum(-1)
    whole = target / mass
    torch.testing.assert_close(
        loss, mass * (whole * (REFERENCE.log_softmax(-1) - POLICY.log_softmax(-1))).sum(-1)
    )
    torch.testing.assert_close(slope, mass * (POLICY.softmax(-1) - whole))


def test_what_is_left_out_keeps_the_references_share():
    """Without draws from the tail, as where the rest has advantages of 0."""
    token_ids = torch.tensor([[0, 3]])
    weights = REFERENCE.softmax(-1).gather(-1, token_ids)
    known = torch.zeros_like(ADVANTAGES).scatter(-1, token_ids, ADVANTAGES.gather(-1, token_ids))
    found = loss_of(POLICY, token_ids, weights, ADVANTAGES.gather(-1, token_ids))
    torch.testing.assert_close(found, loss_of(POLICY, EVERY, REFERENCE.softmax(-1), known))


def test_advantages_are_cut_and_the_normaliser_is_kept_from_0():
    pi_ref = REFERENCE.softmax(-1)
    cut = loss_of(POLICY, EVERY, pi_ref, ADVANTAGES, most=0.5)
    torch.testing.assert_close(cut, loss_of(POLICY, EVERY, pi_ref, ADVANTAGES.clamp(-0.5, 0.5)))
    excess, normaliser = excess_and_normaliser(pi_ref, torch.full_like(ADVANTAGES, -3.0), 1.0, 10.0)
    assert normaliser.item() == LEAST_NORMALISER
    assert tilted_targets.tilted_targets(REFERENCE, EVERY, excess, normaliser).sum() < 1


def test_what_can_be_learnt_is_told_where_the_normaliser_is_at_its_floor_too():
    """The least loss, that of the target scaled to mass 1; by hand, 0 where all that may follow is as bad."""
    pi_ref, worse = REFERENCE.softmax(-1), ADVANTAGES - 1.5
    excess, normaliser = excess_and_normaliser(pi_ref, worse, BETA, 10.0)
    mass = 1 + excess.sum()
    assert mass < LEAST_NORMALISER == normaliser.item()
    best = REFERENCE + BETA * worse
    kl = target_kl(pi_ref, worse, BETA, 10.0)
    torch.testing.assert_close(kl, mass / LEAST_NORMALISER * token_kl(best, REFERENCE))
    torch.testing.assert_close(loss_of(best, EVERY, pi_ref, worse), -kl)
    assert gradient(lambda z: loss_of(z, EVERY, pi_ref, worse), best).abs().max() < 1e-12
    alike = target_kl(pi_ref, torch.full_like(ADVANTAGES, -3.0), 1.0, 10.0)
    torch.testing.assert_close(alike, torch.zeros(1, dtype=F64))
    negative = target_kl(
        torch.tensor([[1.0, 0.5]], dtype=F64), torch.full((1, 2), -3.0, dtype=F64), 1.0, 10.0
    )
    assert negative.isfinite().all()  # weights of draws may add up to more than 1, and Z fall below 0


def test_a_token_that_both_rule_out_adds_nothing():
    out = torch.tensor([[0.0, 0.0, -torch.inf, 0.0, 0.0]], dtype=F64)
    log_ratio, kl = candidate_log_ratios(POLICY + out, REFERENCE + out, torch.tensor([[0, 1]]))
    kept = [0, 1, 3, 4]
    short = candidate_log_ratios(POLICY[:, kept], REFERENCE[:, kept], torch.tensor([[0, 1]]))
    torch.testing.assert_close((log_ratio, kl), short)
