"""J-BOND on a tabular policy, where every expectation is a sum over all draws."""

import itertools
import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.base import ScoredDraws, best_draw
from nonpareil.methods.jbond import JBOND
from tests.methods import tabular

SETTINGS = {"jeffreys_weight": 0.3, "kl_coef": 0.1, "quantile_estimator": "tie_aware"}
CASES = {"jbond": JBOND(0.4, 0.7)}

REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.4], dtype=torch.float64)
STRICT = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def columns(rows):
    """(policy draw, anchor draw, anchor draw) rows as own [b, 1] and anchors [b, 2]."""
    table = torch.tensor(rows)
    return table[:, :1], table[:, 1:]


def losses(method, rows, logits, rewards, anchor, tie_breaker=None):
    log_pi = logits.log_softmax(-1)
    own, anchors = columns(rows)
    batch = tabular.draws_of(own, anchors, rewards, log_pi, anchor.log(), tie_breaker)
    return tabular.losses(method, own, anchors, log_pi, batch)


def numbers(rewards, anchors, log_ratio):
    """`ScoredDraws` from rewards and log-ratios alone."""
    return ScoredDraws(
        policy_rewards=rewards,
        anchor_rewards=anchors,
        policy_token_logprobs=log_ratio[..., None],
        completion_mask=torch.ones(*log_ratio.shape, 1, dtype=torch.bool),
        anchor_logprobs_of_policy=torch.zeros_like(log_ratio),
        anchor_token_logprobs=torch.zeros_like(anchors)[..., None],
        tie_breaker=torch.full_like(anchors, 0.5),
    )


def objective(method, logits, rewards, anchor):
    """What Algorithm 2 descends, in closed form: E[r_J(y)] = -log 16 (1 - p<=(y))^2."""
    log_pi = logits.log_softmax(-1)
    pi = log_pi.exp()
    best_of_2 = distribution(anchor, rewards, 2)
    above = (anchor[None] * (rewards[None] > rewards[:, None])).sum(-1)
    kl = (pi * (log_pi - anchor.log())).sum()
    forward = -(best_of_2 * log_pi).sum()
    backward = kl + math.log(16) * (pi * above**2).sum()
    w = method.jeffreys_weight
    return (1 - w) * forward + w * backward + method.kl_coef * kl


def numeric_gradient(function, point, step=1e-5):
    gradient = torch.zeros_like(point)
    for i in range(len(point)):
        shift = torch.zeros_like(point)
        shift[i] = step
        gradient[i] = (function(point + shift) - function(point - shift)) / (2 * step)
    return gradient


@pytest.mark.parametrize("rewards", [STRICT, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)])
@pytest.mark.parametrize(
    ("weight", "kl_coef"),
    [
        (0.0, 0.0),
        (0.3, 0.7),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(1.0, 0.0), (0.5, 0.0), (0.5, 2.0)]),
    ],
)
def test_expected_gradient_is_that_of_the_objective(rewards, weight, kl_coef):
    """Summed over all pairs of prompts, so that the leave-one-out baseline is in the sum."""
    method = JBOND(weight, kl_coef)
    logits = LOGITS.clone().requires_grad_()
    pi = logits.detach().softmax(-1)
    triples = list(itertools.product(range(3), repeat=3))
    expected = torch.zeros((), dtype=torch.float64)
    for first, second in itertools.combinations_with_replacement(triples, 2):  # the mean of two has no order
        probability = 1.0 if first == second else 2.0
        for y, y1, y2 in (first, second):
            probability *= pi[y] * REFERENCE[y1] * REFERENCE[y2]
        # Both orders of a tie, half each.
        for ties in ([[0.2, 0.7]] * 2, [[0.7, 0.2]] * 2):
            both = losses(method, [first, second], logits, rewards, REFERENCE, torch.tensor(ties))
            expected = expected + 0.5 * probability * both.mean()
    (gradient,) = torch.autograd.grad(expected, logits)
    truth = numeric_gradient(lambda z: objective(method, z, rewards, REFERENCE), LOGITS)
    torch.testing.assert_close(gradient, truth, atol=1e-8, rtol=1e-6)


def test_the_gamma_term_lowers_the_kl_to_the_anchor():
    """The paper's printed gradient raises it."""
    method = JBOND(0.5, kl_coef=5.0)
    gradient = numeric_gradient(lambda z: objective(method, z, STRICT, REFERENCE), LOGITS)

    def kl(z):
        log_pi = z.log_softmax(-1)
        return (log_pi.exp() * (log_pi - REFERENCE.log())).sum()

    assert kl(LOGITS - 0.01 * gradient) < kl(LOGITS)


def train(method, anchor, rewards, steps, ema=0.0, seed=0):
    """Stochastic training of a table of logits, the anchor fixed or following."""
    generator = torch.Generator().manual_seed(seed)
    logits = anchor.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    follower = anchor.log().clone()
    for _ in range(steps):
        moving = follower.softmax(-1)
        y = logits.detach().softmax(-1).multinomial(4096, True, generator=generator)
        pair = moving.multinomial(8192, True, generator=generator).view(4096, 2)
        rows = list(zip(y.tolist(), *pair.T.tolist(), strict=True))
        ties = torch.rand(4096, 2, generator=generator)
        loss = losses(method, rows, logits, rewards, moving, ties).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        follower = (1 - ema) * follower + ema * logits.detach()
    return logits.detach().softmax(-1)


def test_backward_alone_reaches_its_fixed_point():
    """pi ∝ anchor exp(-log 16 (1 - p<=)^2): close to best-of-2, and not equal to it."""
    reached = train(JBOND(1.0), REFERENCE, STRICT, steps=250)
    above = torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64)
    fixed_point = (REFERENCE.log() - math.log(16) * above**2).softmax(-1)
    torch.testing.assert_close(reached, fixed_point, atol=0.01, rtol=0)


def test_forward_alone_reaches_best_of_2():
    reached = train(JBOND(0.0), REFERENCE, STRICT, steps=250)
    torch.testing.assert_close(reached, distribution(REFERENCE, STRICT, 2), atol=0.01, rtol=0)


def test_with_ties_forward_shares_them():
    rewards = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    reached = train(JBOND(0.0), REFERENCE, rewards, steps=250)
    torch.testing.assert_close(reached, distribution(REFERENCE, rewards, 2), atol=0.012, rtol=0)


def test_a_following_anchor_goes_beyond_best_of_2():
    reached = train(JBOND(0.5), REFERENCE, STRICT, steps=250, ema=0.05)
    assert reached[2] > distribution(REFERENCE, STRICT, 2)[2] + 0.2


def test_penalty_fires_a_third_of_the_time_at_the_start():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(100_000, 3, generator=generator)
    batch = numbers(rewards[:, :1], rewards[:, 1:], torch.zeros(100_000, 1))
    assert JBOND().metrics(batch)["jbond/penalty_rate"] == pytest.approx(1 / 3, abs=0.005)


def test_failed_rewards_take_no_part():
    """A prompt with a failed reward has loss 0 and moves no other prompt's baseline."""
    nan = math.nan
    method = JBOND(0.5, 1.0)

    def batch(extra):
        rewards = [[0.5], [2.0], *([[r[0]] for r in extra])]
        anchors = [[1.0, 3.0], [0.0, 1.0], *([r[1:] for r in extra])]
        ratio = torch.tensor([[0.1], [-0.4], *[[9.0]] * len(extra)])
        return numbers(torch.tensor(rewards), torch.tensor(anchors), ratio)

    whole = method.targets(batch([]))
    extra = method.targets(batch([[nan, 1.0, 2.0], [1.0, nan, 2.0], [1.0, 2.0, nan]]))
    torch.testing.assert_close(extra.advantages, torch.cat([whole.advantages, torch.zeros(3, 1)]))
    torch.testing.assert_close(extra.kl_advantages, torch.cat([whole.kl_advantages, torch.zeros(3, 1)]))
    assert not extra.train_policy[2:].any()
    assert not extra.train_anchor[2:].any()
    logprobs = torch.full((5, 3), -3.0, requires_grad=True)
    own, anchors = logprobs[:, :1] * extra.train_policy, logprobs[:, 1:] * extra.train_anchor
    lost = method.loss(own[..., None], anchors[..., None], extra)
    assert lost[2:].tolist() == [0, 0, 0]
    assert lost[:2].abs().sum() > 0


def test_best_draw_breaks_ties_by_the_numbers_given_and_never_takes_a_failure():
    rewards = torch.tensor([[1.0, 1.0], [1.0, 1.0], [math.nan, -5.0], [math.nan, math.nan], [2.0, 1.0]])
    ties = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    expected = [[False, True], [True, False], [False, True], [False, False], [True, False]]
    assert best_draw(rewards, ties).tolist() == expected


def test_a_monotone_transform_of_the_reward_changes_nothing():
    rows = list(itertools.product(range(3), repeat=3))
    plain = losses(JBOND(0.5, 1.0), rows, LOGITS, STRICT, REFERENCE)
    bent = losses(JBOND(0.5, 1.0), rows, LOGITS, STRICT.exp() * 7 - 3, REFERENCE)
    torch.testing.assert_close(plain, bent)


def backward_alone(estimator, rate):
    """The success rate at which E[reward] - KL(pi || anchor) is greatest, from 0/1 rewards of this success rate."""
    rewards, anchor = torch.tensor([0.0, 1.0]).double(), torch.tensor([1 - rate, rate]).double()
    pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    chance, worth = anchor[pairs].prod(-1), torch.zeros(2).double()
    for y in (0, 1):
        draws = numbers(rewards[y].expand(4, 1), rewards[pairs], torch.zeros(4, 1).double())
        # One prompt at a time: there is no baseline, and equal anchor rewards have that of a tie, 0.
        each = [JBOND(1.0, quantile_estimator=estimator).targets(row(draws, i)).advantages for i in range(4)]
        worth[y] = chance @ torch.cat(each)
    return (anchor.log() + worth).softmax(-1)[1].item()


def row(draws, i):
    return ScoredDraws(**{name: value[i : i + 1] for name, value in vars(draws).items()})


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_with_binary_rewards_tie_aware_reaches_best_of_2(rate):
    """The share of best-of-2's gain in success rate, at once the share of its KL to within a fifth."""
    best_of_2 = 1 - (1 - rate) ** 2
    reached = backward_alone("tie_aware", rate)
    assert 0.89 < (reached - rate) / (best_of_2 - rate) < 1.001
    paper = (backward_alone("two_sample", rate) - rate) / (best_of_2 - rate)
    expected = {0.05: 0.01, 0.1: 0.03, 0.2: 0.11, 0.3: 0.26, 0.5: 0.67, 0.7: 0.96}
    assert rate not in expected or paper == pytest.approx(expected[rate], abs=0.006)


def test_tie_aware_is_exact_for_binary_rewards_at_one_half():
    assert backward_alone("tie_aware", 0.5) == pytest.approx(0.75, abs=1e-12)


def test_with_binary_rewards_jbond_reaches_half_of_best_of_2s_gain_and_tie_aware_all_of_it():
    """w = .5 and 8 of 10 answers wrong: best-of-2 is right .36 of the time."""
    rewards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    reached = [
        train(JBOND(quantile_estimator=e), REFERENCE, rewards, 250)[2] for e in ("two_sample", "tie_aware")
    ]
    assert [r.item() for r in reached] == pytest.approx([0.286, 0.357], abs=0.012)


def test_without_ties_tie_aware_is_the_papers_estimator():
    """log 2 apart, which no policy gradient sees."""
    rows = list(itertools.product(range(6), repeat=3))
    rows = [r for r in rows if r[0] not in r[1:] and r[1] != r[2]]
    rewards = torch.arange(6).double()
    own, anchors = columns(rows)
    log_pi = torch.full((6,), -math.log(6)).double()
    draws = tabular.draws_of(own, anchors, rewards, log_pi, log_pi)
    ours, paper = (JBOND(quantile_estimator=e).targets(draws).advantages for e in ("tie_aware", "two_sample"))
    torch.testing.assert_close(ours, paper)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"jeffreys_weight=1\.5"):
        JBOND(1.5)
    with pytest.raises(ConfigError, match="kl_coef=-1"):
        JBOND(kl_coef=-1)
    with pytest.raises(
        ConfigError, match="quantile_estimator='harmonic' must be one of two_sample, tie_aware"
    ):
        JBOND(quantile_estimator="harmonic")
