"""Prompts whose rewards all tie: they add the objective's pull to the anchor and nothing else, and noise falls."""

import dataclasses

import pytest
import torch

from nonpareil.methods.bonbon import BoNBoN
from nonpareil.methods.bond import BOND
from nonpareil.methods.jbond import JBOND
from nonpareil.methods.regression import Regression
from nonpareil.methods.rloo import RLOO
from nonpareil.methods.sft_bon import SFTBoN
from nonpareil.methods.vbon import VBON
from tests.methods import tabular
from tests.methods.every_method import CASES, every
from tests.methods.tabular import BINARY, F64, LOGITS, REFERENCE, STRICT
from tests.methods.test_invariances import batch, masked_loss, with_rewards

TIE = torch.full((3,), 0.7, dtype=F64)


def at_the_anchor(method, rewards_of):
    """A batch whose policy is the anchor to the last bit, and its log-probs of now."""
    draws, _, _ = batch(method)
    draws = dataclasses.replace(
        draws, anchor_logprobs_of_policy=draws.policy_token_logprobs.sum(-1), **rewards_of(draws)
    )
    return draws, draws.policy_token_logprobs, draws.anchor_token_logprobs


def gradients(method, draws, policy, anchor):
    leaves = policy.clone().requires_grad_(), anchor.clone().requires_grad_()
    lost = masked_loss(method, method.targets(draws), *leaves)
    return torch.autograd.grad(lost.sum(), leaves, allow_unused=True, materialize_grads=True)


@every
def test_a_prompt_whose_rewards_all_tie_adds_nothing_at_the_anchor(method):
    """Not on average but to the last bit, whatever was drawn, among prompts that do tell something."""

    def tied(draws):
        names = ("policy_rewards", "anchor_rewards")
        rewards = {name: getattr(draws, name).clone() for name in names}
        for values in rewards.values():
            values[[0, 3]] = 0.7
        return rewards

    draws, policy, anchor = at_the_anchor(method, tied)
    signal = method.targets(draws).signal
    assert signal.any()
    assert not signal[[0, 3]].any()
    found = gradients(method, draws, policy, anchor)
    assert not any(gradient[[0, 3]].any() for gradient in found)
    assert any(gradient[[1, 2, 4]].any() for gradient in found)


@every
def test_a_prompt_whose_rewards_all_tie_is_pushed_by_no_other_prompt(method):
    """Away from the anchor it adds a pull, which is the same whatever the other prompts' rewards are."""
    draws, policy, anchor = batch(method)

    def moved(others):
        def change(rewards):
            rewards = torch.where(torch.tensor(others)[:, None], -rewards, rewards)
            rewards[0] = 0.7
            return rewards

        return [g[0] for g in gradients(method, with_rewards(draws, change), policy, anchor)]

    plain, turned = moved([False] * 5), moved([False, True, True, True, True])
    assert max(gradient.abs().max() for gradient in plain if gradient.numel()) > 0
    for one, other in zip(plain, turned, strict=True):
        torch.testing.assert_close(one, other)


def forward(logits):
    """grad KL(pi_ref || pi)."""
    return logits.softmax(-1) - REFERENCE


def backward(logits):
    """grad KL(pi || pi_ref)."""
    return tabular.gradient(lambda z: tabular.kl(z, REFERENCE.log()), logits)


PULLS = {
    "bond": (BOND(3, 2, 3, jeffreys_weight=0.3, baseline="prompt"), 3, 0.7, 0.3),
    "bond all": (BOND(2, 2, 3, jeffreys_weight=0.3, imitate="all", baseline="prompt"), 3, 0.7, 0.3),
    "vbon": (VBON(3, "exact", 2, 3, baseline="prompt"), 3, 0.0, 1.0),
    "vbon l1": (VBON(3, "l1", 2, 3, baseline="prompt"), 3, 0.0, 1.0),
    "regression": (Regression(8, num_generations=2, num_reference_samples=3), 3, 0.0, 1.0),
    "rloo": (RLOO(3, 0.2), 0, 0.0, 0.2),
    "sft": (SFTBoN(3), 3, 1.0, 0.0),
    "bonbon": (BoNBoN(3, sft_weight=0.2), 3, 0.2, 0.0),
}


@pytest.mark.parametrize(("method", "m", "of_forward", "of_backward"), PULLS.values(), ids=PULLS)
def test_the_pull_of_a_constant_reward_is_the_objectives(method, m, of_forward, of_backward):
    """With nothing to prefer, best-of-n is the reference: the expected gradient is that of the KLs to it."""
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, TIE, REFERENCE, m), LOGITS)
    expected = of_forward * forward(LOGITS) + of_backward * backward(LOGITS)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


def test_completions_whose_rewards_fail_keep_the_references_share_in_the_forward_kl():
    """Its pull rests at the reference, where plain imitation would take from them all they have."""
    rewards = torch.tensor([torch.nan, 1.0, 2.0], dtype=F64)
    law = torch.tensor([0.5, 0.5 * 0.6**2, 0.5 * (1 - 0.6**2)], dtype=F64)
    found = tabular.gradient(lambda z: tabular.expected_loss(SFTBoN(2), z, rewards, REFERENCE, 2), law.log())
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-10, rtol=0)


def test_the_pull_of_a_constant_reward_of_jbond_is_the_objectives():
    """Its baseline is over the batch: two prompts of two outcomes."""
    method, reference = JBOND(0.3, 0.5), torch.tensor([0.6, 0.4], dtype=F64)
    found = tabular.gradient(
        lambda z: tabular.expected_loss_of_two(method, z, TIE[:2], reference, 2), LOGITS[:2]
    )
    backwards = tabular.gradient(lambda z: tabular.kl(z, reference.log()), LOGITS[:2])
    expected = 0.7 * (LOGITS[:2].softmax(-1) - reference) + (0.3 + 0.5) * backwards
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    "method", [CASES["bond winner"], CASES["vbon exact"], VBON(3, "l1", 1, 6), CASES["jbond"]]
)
def test_equal_anchor_rewards_tell_of_a_draw_above_or_below_them(method):
    """What ties is the whole prompt, not the anchor's half of it."""

    def anchors_tie(draws):
        own = torch.full_like(draws.policy_rewards, 0.7)
        own[1], own[2] = 0.0, 2.0
        return {"policy_rewards": own, "anchor_rewards": torch.full_like(draws.anchor_rewards, 0.7)}

    draws, _, _ = at_the_anchor(method, anchors_tie)
    targets = method.targets(draws)
    below, above = targets.advantages.view(5, -1)[1:3]
    # By its own rule J-BOND's reward, and l1's, know only one of the two.
    assert (below < 0).all() or (above > 0).all()
    told = [bool(each.any()) for each in (below, above)]
    assert targets.signal.tolist() == [False, *told, False, False]


# --- Noise


def plain_winner_noise(logits, rewards, n):
    """The variance of the gradient of -log pi(best of n), ties broken at random."""
    probability, _, anchors, ties = tabular.all_draws(0, n, REFERENCE, REFERENCE)
    values = rewards[anchors]
    best = torch.where(values == values.amax(-1, keepdim=True), ties, -1.0).argmax(-1)
    winner = anchors[torch.arange(len(anchors)), best]
    return tabular.noise_of(lambda z: -z.log_softmax(-1)[winner], logits, probability)


@pytest.mark.parametrize("rewards", [STRICT, BINARY, TIE], ids=["strict", "binary", "constant"])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("moved", [0.0, 1.0, 4.0])
def test_imitation_is_less_noisy_than_the_winners_likelihood_near_and_far(rewards, n, moved):
    """From the reference to a policy that has all but left it: `moved` times the way of the rewards."""
    logits = REFERENCE.log() + moved * STRICT
    ours = tabular.gradient_noise(SFTBoN(n), logits, rewards, REFERENCE, n)
    plain = plain_winner_noise(logits, rewards, n)
    assert ours < plain
    if moved == 0:
        assert ours < 1e-25 if rewards is TIE else ours < (1 - 1 / n + 1e-9) * plain


@pytest.mark.parametrize("rewards", [BINARY, TIE], ids=["binary", "constant"])
def test_bonbons_sft_term_is_less_noisy_than_the_winners_likelihood_where_rewards_tie(rewards):
    ours = tabular.gradient_noise(BoNBoN(2, sft_weight=1.0), REFERENCE.log(), rewards, REFERENCE, 2)
    assert ours < plain_winner_noise(REFERENCE.log(), rewards, 2)


def test_ten_steps_on_a_constant_reward_stay_where_they_are():
    """Adam, whose steps are of the learning rate's size however small a gradient is: J-BOND used to drift."""
    generator = torch.Generator().manual_seed(0)
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(10):
        log_pi = logits.log_softmax(-1)
        own = log_pi.detach().exp().multinomial(8, True, generator=generator).view(8, 1)
        anchors = REFERENCE.multinomial(16, True, generator=generator).view(8, 2)
        draws = tabular.draws_of(own, anchors, TIE, log_pi, REFERENCE.log())
        assert not JBOND().targets(draws).signal.any()
        optimizer.zero_grad()
        tabular.losses(JBOND(0.0), own, anchors, log_pi, draws).mean().backward()
        optimizer.step()
    assert tabular.kl(logits.detach(), REFERENCE.log()).abs() < 1e-12


def test_draws_of_one_worth_above_references_that_differ_are_pulled_back():
    """A policy that always wins has gone too far, which is no reason to leave it there."""
    own, anchors = torch.tensor([[2], [2]]), torch.tensor([[0, 1], [1, 0]])
    draws = tabular.draws_of(own, anchors, STRICT, LOGITS.log_softmax(-1), REFERENCE.log())
    for method in (JBOND(1.0), VBON(2, "exact", 1, 2), BOND(2, 1, 2, jeffreys_weight=1.0)):
        assert method.targets(draws).signal.tolist() == [True, True]


def test_draws_of_one_worth_tell_nothing_while_the_policy_is_the_anchor_but_for_rounding():
    """Any two draws' log-ratios differ by rounding then, which a step must not be made of."""
    own, anchors = torch.tensor([[2], [1]]), torch.tensor([[0, 1], [0, 0]])
    draws = tabular.draws_of(own, anchors, STRICT, REFERENCE.log(), REFERENCE.log())
    rounded = draws.anchor_logprobs_of_policy + torch.tensor([[1e-6], [-1e-6]])
    draws = dataclasses.replace(draws, anchor_logprobs_of_policy=rounded)
    targets = JBOND(1.0).targets(draws)
    assert targets.signal.tolist() == [False, False]
    assert not targets.train_anchor.any()
    assert JBOND(0.5).targets(draws).signal.tolist() == [True, False]


def test_a_single_anchor_draw_leaves_the_baseline_its_work():
    """Rewards of one draw cannot differ, and a mean over none would leave returns as noisy as they are."""
    own, anchors = torch.tensor([[2], [0], [1], [2]]), torch.tensor([[1], [1], [0], [0]])
    draws = tabular.draws_of(own, anchors, STRICT, REFERENCE.log(), REFERENCE.log())
    worth = BOND(2, 1, 1, jeffreys_weight=1.0).targets(draws).advantages
    torch.testing.assert_close(worth.sum(), torch.zeros_like(worth.sum()))
