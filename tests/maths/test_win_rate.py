import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nonpareil.maths.win_rate import pairwise

F64 = torch.float64
NAN = math.nan

rewards = st.lists(st.integers(-3, 3) | st.just(NAN), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rewards, rewards)
def test_pairwise_counts_every_valid_pair(policy, reference):
    counts = pairwise(torch.tensor([policy], dtype=F64), torch.tensor([reference], dtype=F64))
    pairs = [(p, r) for p in policy for r in reference if not (math.isnan(p) or math.isnan(r))]
    for share, wanted in [
        (counts.win, sum(p > r for p, r in pairs)),
        (counts.tie, sum(p == r for p, r in pairs)),
        (counts.loss, sum(p < r for p, r in pairs)),
    ]:
        assert share.item() == pytest.approx(wanted / len(pairs) if pairs else NAN, nan_ok=True)
    half = counts.win + counts.tie / 2
    torch.testing.assert_close(counts.win_rate, half, equal_nan=True)


def test_one_win_one_loss_and_98_ties_is_one_half():
    policy, reference = torch.zeros(1, 10), torch.zeros(1, 10)
    policy[0, 0], reference[0, 0] = 1.0, 1.0
    counts = pairwise(policy, reference)
    assert counts.tie.item() == pytest.approx(0.82)
    assert counts.win_rate.item() == 0.5


def test_a_policy_against_itself_is_exactly_one_half():
    own = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    own[3, 2] = NAN
    assert (pairwise(own, own).win_rate == 0.5).all()


def test_swapping_the_sides_swaps_wins_and_losses():
    generator = torch.Generator().manual_seed(0)
    policy = torch.randint(0, 4, (20, 5), generator=generator).float()
    reference = torch.randint(0, 4, (20, 3), generator=generator).float()
    ours, theirs = pairwise(policy, reference), pairwise(reference, policy)
    torch.testing.assert_close(ours.win, theirs.loss)
    torch.testing.assert_close(ours.win_rate + theirs.win_rate, torch.ones(20))
    shifted = pairwise(policy.exp(), reference.exp())  # only the order counts
    assert torch.equal(shifted.win_rate, ours.win_rate)
