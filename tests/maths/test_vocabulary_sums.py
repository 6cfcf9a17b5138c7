"""That a few tokens' weights give the whole vocabulary's expectation, by every draw that there can be."""

import itertools
import math

import pytest
import torch

from nonpareil.maths.vocabulary_sums import next_token_candidates


@pytest.mark.parametrize(("likeliest", "from_tail"), [(0, 1), (0, 5), (1, 1), (1, 2), (1, 3), (2, 3), (2, 2)])
def test_the_weighted_sum_is_the_expectation_over_all_draws(likeliest: int, from_tail: int) -> None:
    """Every order in which the tail can be drawn, by its probability: p(first) p(second | first is gone) ..."""
    torch.manual_seed(likeliest)
    logits, values = 2 * torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    drawn, probs = 3, logits.softmax(-1)
    certain = [drawn, *(i for i in logits.argsort(descending=True).tolist() if i != drawn)][: 1 + likeliest]
    tail = [i for i in range(6) if i not in certain]
    mean, total = 0.0, 0.0
    for order in itertools.permutations(tail, from_tail):
        noise = torch.zeros(1, 6, dtype=torch.float64)
        noise[0, list(order)] = 1000.0 * torch.arange(from_tail, 0, -1, dtype=torch.float64)
        tokens, logprobs, weights = next_token_candidates(
            logits[None], torch.tensor([drawn]), noise, likeliest, from_tail
        )
        assert tokens[0].tolist() == [*certain, *order]
        torch.testing.assert_close(logprobs[0], logits.log_softmax(-1)[tokens[0]])
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        left = [sum(probs[i].item() for i in tail if i not in order[:j]) for j in range(from_tail)]
        chance = math.prod(probs[i].item() / mass for i, mass in zip(order, left, strict=True))
        mean, total = mean + chance * (weights[0] @ values[tokens[0]]).item(), total + chance
    assert total == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx((probs @ values).item(), abs=1e-12)


def test_tokens_without_probability_are_drawn_last_and_weigh_nothing() -> None:
    logits = torch.full((3, 9), -torch.inf)
    logits[:, :5] = torch.randn(3, 5)
    tokens, _, weights = next_token_candidates(logits, torch.tensor([0, 1, 2]), torch.zeros(3, 9), 1, 6)
    assert all(len(set(row)) == 8 for row in tokens.tolist())
    assert (tokens[:, :5] < 5).all()
    assert weights[:, 5:].abs().max() < 1e-6
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
