"""What must change nothing, for every method: order, padding, splitting, the reward's scale, failed rewards."""

import dataclasses
import math

import pytest
import torch

from nonpareil.methods import METHODS, method_settings
from nonpareil.methods.base import ScoredDraws
from nonpareil.methods.bonbon import BoNBoN
from nonpareil.methods.jbond import JBOND
from nonpareil.methods.rloo import RLOO
from tests.methods import tabular
from tests.methods.every_method import CASES, every
from tests.methods.tabular import F64, REFERENCE, STRICT

M = 6


def test_no_method_is_missing():
    assert {type(method) for method in CASES.values()} == set(METHODS.values())


def group_size(method):
    return method.anchor_draws or (0 if method.stored_groups == "refused" else M)


def batch(method, b=5, seed=0, equal=False) -> tuple[ScoredDraws, torch.Tensor, torch.Tensor]:
    """Draws with ties, and token log-probs of now: policy [b, k, t] and anchor [b, m, t], 0 behind the end."""
    generator = torch.Generator().manual_seed(seed)
    k, m, t = method.policy_draws, group_size(method), 4

    def logprobs(count):
        tokens = -torch.rand(b, count, t, generator=generator, dtype=F64) - 0.1
        lengths = torch.randint(1, t + 1, (b, count, 1), generator=generator)
        return tokens * (torch.arange(t) < lengths)

    def rewards(count):
        values = torch.randint(0, 1 if equal else 4, (b, count), generator=generator)
        return values.to(F64)

    sampled, stored, anchor = logprobs(k), logprobs(m), logprobs(k)
    draws = ScoredDraws(
        policy_rewards=rewards(k),
        anchor_rewards=rewards(m),
        policy_token_logprobs=sampled,
        completion_mask=sampled < 0,
        anchor_logprobs_of_policy=anchor.sum(-1),
        anchor_token_logprobs=stored,
        tie_breaker=torch.rand(b, m, generator=generator),
    )
    return draws, sampled * 1.05, stored * 0.9


def masked_loss(method, targets, policy, anchor):
    return method.loss(
        policy * targets.train_policy[..., None], anchor * targets.train_anchor[..., None], targets
    )


def loss(method, draws, policy, anchor):
    return masked_loss(method, method.targets(draws), policy, anchor)


def per_draw(draws, policy_index, anchor_index):
    """The draws in another order of policy and anchor draws."""
    return ScoredDraws(
        policy_rewards=draws.policy_rewards[:, policy_index],
        anchor_rewards=draws.anchor_rewards[:, anchor_index],
        policy_token_logprobs=draws.policy_token_logprobs[:, policy_index],
        completion_mask=draws.completion_mask[:, policy_index],
        anchor_logprobs_of_policy=draws.anchor_logprobs_of_policy[:, policy_index],
        anchor_token_logprobs=draws.anchor_token_logprobs[:, anchor_index],
        tie_breaker=draws.tie_breaker[:, anchor_index],
    )


def rows_of(draws, rows):
    return ScoredDraws(**{name: value[rows] for name, value in vars(draws).items()})


@every
def test_the_order_of_a_groups_draws_changes_nothing(method):
    """Where best and worst are of n, the order within each n."""
    draws, policy, anchor = batch(method)
    whole = loss(method, draws, policy, anchor)
    assert whole.abs().min() > 0
    own = torch.arange(policy.shape[1]).flip(0)
    order = {0: [], 2: [1, 0], M: [2, 0, 1, 4, 5, 3]}[anchor.shape[1]]
    other = loss(method, per_draw(draws, own, order), policy[:, own], anchor[:, order])
    torch.testing.assert_close(other, whole)


@every
def test_the_order_of_the_prompts_changes_their_order_only(method):
    draws, policy, anchor = batch(method)
    rows = [3, 0, 4, 2, 1]
    other = loss(method, rows_of(draws, rows), policy[rows], anchor[rows])
    torch.testing.assert_close(other, loss(method, draws, policy, anchor)[rows])


@every
def test_a_split_batch_has_the_losses_and_gradients_of_the_whole(method):
    """Targets are made once for the batch; then it may be split for memory, in any order and size."""
    draws, policy, anchor = batch(method)
    targets = method.targets(draws)

    def gradients(parts):
        leaves = policy.clone().requires_grad_(), anchor.clone().requires_grad_()
        lost = torch.cat([masked_loss(method, targets.select(r), leaves[0][r], leaves[1][r]) for r in parts])
        found = torch.autograd.grad(lost.sum(), leaves, allow_unused=True, materialize_grads=True)
        rows = [row for part in parts for row in part]
        return (lost[sorted(range(5), key=rows.__getitem__)], *found)

    whole = gradients([[0, 1, 2, 3, 4]])
    assert max(part.abs().max() for part in whole[1:] if part.numel()) > 0
    for found, expected in zip(gradients([[4, 1], [0], [2, 3]]), whole, strict=True):
        torch.testing.assert_close(found, expected)


@every
def test_more_padding_changes_nothing(method):
    draws, policy, anchor = batch(method)
    wide = torch.nn.functional.pad
    padded = dataclasses.replace(
        draws,
        policy_token_logprobs=wide(draws.policy_token_logprobs, (0, 3)),
        completion_mask=wide(draws.completion_mask, (0, 3)),
        anchor_token_logprobs=wide(draws.anchor_token_logprobs, (0, 3)),
    )
    other = loss(method, padded, wide(policy, (0, 3)), wide(anchor, (0, 3)))
    torch.testing.assert_close(other, loss(method, draws, policy, anchor))


def with_rewards(draws, function):
    return dataclasses.replace(
        draws, policy_rewards=function(draws.policy_rewards), anchor_rewards=function(draws.anchor_rewards)
    )


@every
def test_a_strictly_rising_transform_of_the_reward_changes_nothing(method):
    """Only ranks count; but to rloo, which sees the raw reward, only a constant shift is nothing."""
    draws, policy, anchor = batch(method)
    plain = loss(method, draws, policy, anchor)
    bent = loss(method, with_rewards(draws, lambda r: 7 * r.exp() - 30), policy, anchor)
    if isinstance(method, RLOO):
        assert (bent - plain).abs().min() > 0.1
        bent = loss(method, with_rewards(draws, lambda r: r + 7), policy, anchor)
    torch.testing.assert_close(bent, plain)
    turned = loss(method, with_rewards(draws, lambda r: -r), policy, anchor)
    assert (turned - plain).abs().max() > 1e-3


@every
def test_a_constant_reward_pulls_nowhere_at_the_reference(method):
    """The expected gradient over all draws at pi = pi_ref; with a reward that tells outcomes apart it is not 0."""
    known = method_settings(type(method))
    if "num_generations" in known and method.policy_draws:
        # Over one prompt the batch's other draws are the prompt's.
        fewer = {"num_generations": 2, "n": 2, "baseline": "prompt"}
        method = dataclasses.replace(method, **{k: v for k, v in fewer.items() if k in known})
    m = min(group_size(method), 3)

    def expected(rewards):
        if isinstance(method, JBOND):  # its baseline is over the batch
            where = (rewards[:2], torch.tensor([0.6, 0.4], dtype=F64))
            return tabular.gradient(
                lambda z: tabular.expected_loss_of_two(method, z, *where, m), where[1].log()
            )
        return tabular.gradient(
            lambda z: tabular.expected_loss(method, z, rewards, REFERENCE, m), REFERENCE.log()
        )

    assert expected(torch.full((3,), 0.7, dtype=F64)).abs().max() < 1e-12
    assert expected(STRICT).abs().max() > 1e-3


@every
@pytest.mark.parametrize("side", ["policy_rewards", "anchor_rewards", "both"])
def test_prompts_whose_rewards_failed_take_no_part_and_move_nothing_else(method, side):
    """Losses and gradients of the other prompts are, to rounding, those of a batch without them."""
    draws, policy, anchor = batch(method)
    names = ["policy_rewards", "anchor_rewards"] if side == "both" else [side]
    if not any(getattr(draws, name).shape[1] for name in names):
        pytest.skip("this method has no such draws")
    failed = {name: getattr(draws, name).clone() for name in names}
    for values in failed.values():
        values[[1, 3]] = math.nan
    kept = [0, 2, 4]

    def gradients(some, rows):
        leaves = policy[rows].clone().requires_grad_(), anchor[rows].clone().requires_grad_()
        lost = loss(method, some, *leaves)
        return lost, *torch.autograd.grad(lost.sum(), leaves, allow_unused=True, materialize_grads=True)

    found = gradients(dataclasses.replace(draws, **failed), [0, 1, 2, 3, 4])
    alone = gradients(rows_of(draws, kept), kept)
    assert alone[0].abs().min() > 0
    for values, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(values[kept], expected, atol=1e-14, rtol=1e-13)  # sums in another order
        assert not values[[1, 3]].any()


@every
def test_a_failed_draw_is_as_if_it_had_not_been_drawn(method):
    """One more draw of each side at the end, its reward failed, and its log-probs missing as in a smaller group."""
    if isinstance(method, JBOND | BoNBoN):
        pytest.skip("needs every reward of its pair or subgroup, which is left out")
    draws, policy, anchor = batch(method)
    plain = loss(method, draws, policy, anchor)

    def more(values, filler):
        return torch.cat([values, torch.full_like(values[:, :1], filler)], 1)

    nan, grown = math.nan, {}
    if policy.shape[1]:
        grown |= {
            "policy_rewards": more(draws.policy_rewards, nan),
            "policy_token_logprobs": more(draws.policy_token_logprobs, -1.0),
            "completion_mask": more(draws.completion_mask, True),
            "anchor_logprobs_of_policy": more(draws.anchor_logprobs_of_policy, -2.0),
        }
        policy = more(policy, -3.0)
    if anchor.shape[1]:
        grown |= {
            "anchor_rewards": more(draws.anchor_rewards, nan),
            "anchor_token_logprobs": more(draws.anchor_token_logprobs, nan),
            "tie_breaker": more(draws.tie_breaker, 0.99),
        }
        anchor = more(anchor, -3.0)
    leaves = policy.requires_grad_(), anchor.requires_grad_()
    found = loss(method, dataclasses.replace(draws, **grown), *leaves)
    torch.testing.assert_close(found, plain)
    for gradient in torch.autograd.grad(found.sum(), leaves, allow_unused=True, materialize_grads=True):
        assert gradient.isfinite().all()
        assert not gradient[:, -1:].any()


def test_a_smaller_stored_group_leaves_bonbons_other_pairs_as_they_are():
    """NaN behind the end of the smaller group, in rewards and log-probs: its whole subgroups still train."""
    method = CASES["bonbon ipo"]
    draws, policy, anchor = batch(method)
    whole = loss(method, draws, policy, anchor)
    rewards, logprobs = draws.anchor_rewards.clone(), draws.anchor_token_logprobs.clone()
    rewards[1, 4:], logprobs[1, 4:] = math.nan, math.nan
    smaller = dataclasses.replace(draws, anchor_rewards=rewards, anchor_token_logprobs=logprobs)
    anchor = anchor.requires_grad_()
    found = loss(method, smaller, policy, anchor)
    assert torch.equal(found[[0, 2, 3, 4]], whole[[0, 2, 3, 4]])
    first = [
        values[:, :3] for values in (draws.anchor_rewards, draws.anchor_token_logprobs, draws.tie_breaker)
    ]
    names = ("anchor_rewards", "anchor_token_logprobs", "tie_breaker")
    lone = dataclasses.replace(draws, **dict(zip(names, first, strict=True)))
    torch.testing.assert_close(found[1], loss(method, lone, policy, anchor[:, :3])[1])
    assert torch.autograd.grad(found.sum(), anchor)[0].isfinite().all()


@every
def test_targets_and_metrics_stand_a_batch_where_everything_failed(method):
    draws, policy, anchor = batch(method)
    draws = with_rewards(draws, lambda r: torch.full_like(r, math.nan))
    assert loss(method, draws, policy, anchor).tolist() == [0.0] * 5
    assert all(math.isfinite(value) for value in method.metrics(draws).values())


@every
def test_infinite_rewards_are_the_best_and_the_worst(method):
    """A reward may be -inf (a log of 0): only its rank counts, but for rloo, which needs a number."""
    if isinstance(method, RLOO):
        pytest.skip("a raw reward")
    draws, policy, anchor = batch(method)

    def stretched(rewards):
        infinite = torch.where(rewards == 0, -math.inf, rewards)
        return torch.where(rewards == 3, math.inf, infinite)

    found = loss(method, with_rewards(draws, stretched), policy, anchor)
    torch.testing.assert_close(found, loss(method, draws, policy, anchor))
