"""SFT on best-of-n, from stored groups, on a tabular policy."""

import dataclasses
import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.imitation import imitation
from nonpareil.methods.sft_bon import SFTBoN
from tests.methods import tabular
from tests.methods.tabular import BINARY, F64, LOGITS, REFERENCE, STRICT, TIED

SETTINGS = {"n": 4, "imitate": "all"}
CASES = {"sft winner": SFTBoN(3), "sft all": SFTBoN(3, "all")}


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 4), (3, 3), (3, 4)])
@pytest.mark.parametrize("imitate", ["winner", "all"])
def test_expected_gradient_is_that_of_the_forward_kl(rewards, n, m, imitate):
    """KL(pi_n || pi): the winner of n and all m with their rank weights have one mean."""
    method = SFTBoN(n, imitate)
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, rewards, REFERENCE, m), LOGITS)
    best = distribution(REFERENCE, rewards, n)
    truth = tabular.numeric_gradient(lambda z: -(best * z.log_softmax(-1)).sum(), LOGITS)
    torch.testing.assert_close(found, truth, atol=1e-8, rtol=1e-6)


def test_all_is_less_noisy_than_the_winner():
    """The variance of the gradient over groups of 4 at n = 2: the reason to pay for m log-probs."""

    def noise(imitate):
        return tabular.gradient_noise(SFTBoN(2, imitate), LOGITS, STRICT, REFERENCE, 4)

    assert noise("all") < 0.5 * noise("winner")


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
def test_many_draws_with_rank_weights_end_at_best_of_n(rewards):
    reached = tabular.train_with_many(SFTBoN(4, "all"), REFERENCE, rewards)
    torch.testing.assert_close(reached, distribution(REFERENCE, rewards, 4), atol=3e-3, rtol=0)


@pytest.mark.parametrize(("imitate", "failing"), [("winner", 0.0), ("winner", 0.2), ("all", 0.2)])
def test_groups_end_at_best_of_n_with_failed_rewards_too(imitate, failing):
    reached = tabular.train_with_groups(SFTBoN(3, imitate), REFERENCE, TIED, m=6, rows=2048, failing=failing)
    torch.testing.assert_close(reached, distribution(REFERENCE, TIED, 3), atol=0.015, rtol=0)


def test_weights_by_hand_with_ties_and_failures():
    nan = math.nan
    rewards = torch.tensor([[1.0, 3.0, nan, 3.0, 9.0], [1.0, nan, nan, nan, nan]], dtype=F64)
    # The first 3 that did not fail are 1, 3, 3, and the 3s share the win. The second row has only one.
    contrast, pull = imitation(rewards, 3, "winner")
    third = torch.tensor([[1 / 3, 1 / 3, 0, 1 / 3, 0], [0] * 5], dtype=F64)
    torch.testing.assert_close(contrast + third, torch.tensor([[0, 0.5, 0, 0.5, 0], [0] * 5], dtype=F64))
    torch.testing.assert_close(pull, third)
    # Of the 6 pairs among 1, 3, 3, 9: three have 9, two have a 3 above 1, one is both 3s.
    contrast, pull = imitation(rewards, 2, "all")
    expected = torch.tensor([[0, 3 / 12, 0, 3 / 12, 6 / 12], [0] * 5], dtype=F64)
    torch.testing.assert_close(contrast + pull, expected)
    assert pull.tolist() == [[0.25, 0.25, 0, 0.25, 0.25], [0] * 5]


@pytest.mark.parametrize("imitate", ["winner", "all"])
@pytest.mark.parametrize("m", [3, 7, 16])
def test_a_group_whose_rewards_all_tie_imitates_nobody_not_even_by_rounding(imitate, m):
    contrast, pull = imitation(torch.full((1, m), 0.7), 3, imitate)
    assert contrast.tolist() == [[0.0] * m]
    assert pull.sum().item() == pytest.approx(1)


def test_the_loss_is_in_summed_nats_of_the_winner():
    method = SFTBoN(2)
    draws = tabular.draws_of(
        torch.zeros(1, 0, dtype=torch.long), torch.tensor([[2, 0]]), STRICT, LOGITS, REFERENCE.log()
    )
    draws = dataclasses.replace(draws, anchor_token_logprobs=torch.full((1, 2, 3), -1.5, dtype=F64))
    tokens = torch.tensor([[[-1.0, -2.0, -0.5], [0.0, 0.0, 0.0]]], dtype=F64)
    targets = method.targets(draws)
    assert targets.train_anchor.tolist() == [[True, True]]
    loss = method.loss(torch.zeros(1, 0, 3, dtype=F64), tokens, targets)
    # Half of the winner's 3.5 nats less half of the other's 0, and half of each one's KL from the reference.
    reference = targets.reference_token_logprobs
    log_ratio = tokens - reference
    pull = (log_ratio.exp() - 1 - log_ratio).sum((-1, -2)) / 2
    torch.testing.assert_close(loss, 3.5 / 2 + pull)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="n=1 must be at least 2"):
        SFTBoN(1)
    with pytest.raises(ConfigError, match="imitate='rank' must be one of winner, all"):
        SFTBoN(imitate="rank")
    assert SFTBoN(5).smallest_group == 5
