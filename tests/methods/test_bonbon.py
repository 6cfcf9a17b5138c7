"""BoNBoN on a tabular policy: the printed loss over all groups, and what its contrast alone ends at."""

import itertools
import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.bonbon import BoNBoN
from tests.methods import tabular
from tests.methods.tabular import F64, LOGITS, REFERENCE, STRICT, TIED

SETTINGS = {"n": 4, "contrast": "dpo", "sft_weight": 0.1}
CASES = {"bonbon ipo": BoNBoN(3, "ipo"), "bonbon dpo": BoNBoN(3, "dpo", 0.3)}

NOBODY = torch.zeros(1, 0, dtype=torch.long)


def printed_loss(method, rewards, logits):
    """arXiv:2406.00832's loss over every group of n, a plain loop: best and worst each drawn evenly among ties."""
    n, a = method.n, method.sft_weight
    log_pi, log_ref = logits.log_softmax(-1), REFERENCE.log()
    beta = 1 / (2 * (n - 1) * tabular.harmonic_number(n - 1))
    total = torch.zeros((), dtype=F64)
    for group in itertools.product(range(len(REFERENCE)), repeat=n):
        probability = math.prod(REFERENCE[y].item() for y in group)
        values = [rewards[y].item() for y in group]
        best = [y for y, value in zip(group, values, strict=True) if value == max(values)]
        worst = [y for y, value in zip(group, values, strict=True) if value == min(values)]
        for b, w in itertools.product(best, worst):
            gap = (log_pi[b] - log_pi[w]) - (log_ref[b] - log_ref[w])
            ipo, dpo = (gap - 1 / (2 * beta)) ** 2, -torch.log(torch.sigmoid(beta * gap))
            contrast = ipo if method.contrast == "ipo" else dpo
            if max(values) == min(values):
                contrast = torch.zeros(())  # no pair
            pair = a * -log_pi[b] + (1 - a) * contrast
            total = total + probability / (len(best) * len(worst)) * pair
    return total


@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
@pytest.mark.parametrize("contrast", ["ipo", "dpo"])
@pytest.mark.parametrize(("n", "sft_weight"), [(2, 0.005), (3, 0.005), (3, 0.6)])
def test_expected_loss_and_gradient_are_those_printed(rewards, contrast, n, sft_weight):
    method = BoNBoN(n, contrast, sft_weight)
    ours, printed = (
        lambda z: tabular.expected_loss(method, z, rewards, REFERENCE, n),
        lambda z: printed_loss(method, rewards, z),
    )
    # The SFT term's control variate has the entropy of the reference for its mean.
    entropy = -(REFERENCE * REFERENCE.log()).sum()
    torch.testing.assert_close(ours(LOGITS) + sft_weight * entropy, printed(LOGITS))
    truth = tabular.numeric_gradient(printed, LOGITS)
    torch.testing.assert_close(tabular.gradient(ours, LOGITS), truth, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("contrast", ["ipo", "dpo"])
def test_sft_weight_1_is_the_forward_kl(contrast):
    """Groups without a pair have a winner all the same: n = 3, 2 outcomes."""
    method = BoNBoN(3, contrast, 1.0)
    reference = torch.tensor([0.6, 0.4], dtype=F64)
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, STRICT[:2], reference, 3), LOGITS[:2])
    best = torch.tensor([0.6**3, 1 - 0.6**3], dtype=F64)
    truth = tabular.numeric_gradient(lambda z: -(best * z.log_softmax(-1)).sum(), LOGITS[:2])
    torch.testing.assert_close(found, truth)


def test_the_first_gradient_of_dpo_is_some_2600_times_smaller():
    """n = 8, at pi = pi_ref: ipo's is 2 / (2 beta) a pair, dpo's beta / 2."""

    def size(contrast):
        method = BoNBoN(8, contrast, 0.0)
        anchors = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 2]])
        at = REFERENCE.log()

        def loss(z):
            return tabular.losses(
                method, NOBODY, anchors, z, tabular.draws_of(NOBODY, anchors, STRICT, z, at)
            )

        return tabular.gradient(lambda z: loss(z).sum(), at).abs().max().item()

    beta = 1 / (2 * 7 * sum(1 / i for i in range(1, 8)))
    assert size("ipo") == pytest.approx(1 / beta)
    assert size("dpo") == pytest.approx(beta / 2)
    assert size("ipo") / size("dpo") == pytest.approx(2635, abs=1)


# --- A continuum: 200 outcomes, finer towards the worst, and every (best, worst) of 8 with its probability

SIZE, N = 200, 8
EDGES = torch.linspace(0, 1, SIZE + 1, dtype=F64) ** 3
CONTINUUM = EDGES.diff()
RANKS = torch.arange(SIZE, dtype=F64)


@pytest.fixture(scope="module")
def pairs():
    """Probability [p] and groups [p, 8] that hold each best once and its worst seven times."""
    best, worst = torch.tril_indices(SIZE, SIZE, offset=-1)

    def within(low, high):  # the chance that all 8 draws lie in low .. high
        return (EDGES[high + 1] - EDGES[low]).clamp(min=0) ** N

    probability = (
        within(worst, best) - within(worst + 1, best) - within(worst, best - 1) + within(worst + 1, best - 1)
    )
    groups = torch.cat([worst[:, None].expand(-1, N - 1), best[:, None]], 1)
    return probability, groups


def contrast(method, pairs, log_pi):
    probability, groups = pairs
    none = torch.zeros(len(groups), 0, dtype=torch.long)
    draws = tabular.draws_of(none, groups, RANKS, log_pi, CONTINUUM.log())
    return (probability * tabular.losses(method, none, groups, log_pi, draws)).sum()


def win_rate_and_kl(pi):
    win = (pi * (EDGES[1:] + EDGES[:-1]) / 2).sum().item()
    return win, (pi * (pi / CONTINUUM).log()).sum().item()


def test_ipo_alone_does_not_end_at_best_of_8(pairs):
    """Win rate .814 and KL .879 where best-of-8 has .889 and 1.204."""
    method = BoNBoN(N, "ipo", 0.0)
    logits = CONTINUUM.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = contrast(method, pairs, logits.log_softmax(-1))
        loss.backward()
        return loss

    optimizer.step(closure)
    win, kl = win_rate_and_kl(logits.detach().softmax(-1))
    assert win == pytest.approx(0.814, abs=5e-4)
    assert kl == pytest.approx(0.879, abs=5e-4)


def test_the_exact_best_of_8_policy_has_an_ipo_loss_of_about_74(pairs):
    best = distribution(CONTINUUM, RANKS, N)
    win, kl = win_rate_and_kl(best)
    assert (win, kl) == pytest.approx((8 / 9, math.log(8) - 7 / 8), abs=1e-3)
    assert contrast(BoNBoN(N, "ipo", 0.0), pairs, best.log()).item() == pytest.approx(74.07, abs=0.2)


# --- Groups


def targets(rewards, n=2):
    rewards = torch.tensor(rewards, dtype=F64)
    b, m = rewards.shape
    draws = tabular.draws_of(
        torch.zeros(b, 0, dtype=torch.long), torch.zeros(b, m, dtype=torch.long), STRICT, LOGITS, LOGITS
    )
    return BoNBoN(n).targets(type(draws)(**{**vars(draws), "anchor_rewards": rewards}))


def test_each_n_of_a_group_give_one_pair_and_the_rest_is_left():
    made = targets([[3.0, 1.0, 5.0, 7.0, 9.0]])
    assert made.best.int().tolist() == [[[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]]
    assert made.worst.int().tolist() == [[[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]]
    assert made.train_anchor.tolist() == [[True, True, True, True, False]]
    three = targets([[3.0, 1.0, 5.0, 7.0, 9.0]], n=3)
    assert three.best.int().tolist() == [[[0, 0, 1, 0, 0]]]
    assert three.worst.int().tolist() == [[[0, 1, 0, 0, 0]]]


def test_equal_or_failed_rewards_give_no_pair_and_the_loss_is_a_mean_over_the_ns():
    nan = math.nan
    made = targets([[2.0, 2.0, 1.0, 4.0], [1.0, nan, nan, nan], [1.0, 2.0, 1.0, 2.0]])
    assert made.worst.any(-1).tolist() == [[False, True], [False, False], [True, True]]
    assert made.best.any(-1).tolist() == [[True, True], [False, False], [True, True]]
    assert made.signal.tolist() == [True, False, True]
    logprobs = torch.tensor([[-9.0, -9.0, -2.0, -1.0]] * 3, dtype=F64) * made.train_anchor
    reference = torch.full((3, 4, 1), -3.0, dtype=F64) * made.train_anchor[..., None]
    made = type(made)(**{**vars(made), "reference_token_logprobs": reference})
    loss = BoNBoN(2, "ipo", 0.25).loss(torch.zeros(3, 0, 1, dtype=F64), logprobs[..., None], made)

    def pull(log_ratio):
        return math.exp(log_ratio) - 1 - log_ratio

    # The second draw of each n has the larger tie-breaker, so it is the control, and the best of the first two.
    tied = 0.25 * pull(-9.0 + 3.0)
    one = (
        0.25 * pull(-1.0 + 3.0) + 0.75 * (1.0 - 1.0) ** 2
    )  # the winner is the control; the margin at n = 2 is 1
    other = 0.25 * pull(-9.0 + 3.0) + 0.75 * (0.0 - 1.0) ** 2
    torch.testing.assert_close(loss, torch.tensor([(tied + one) / 2, 0.0, (one + other) / 2], dtype=F64))


def test_metrics_count_the_subgroups_without_a_pair():
    anchors = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]])
    none = torch.zeros(2, 0, dtype=torch.long)
    draws = tabular.draws_of(none, anchors, TIED, LOGITS, LOGITS)
    assert BoNBoN(2).metrics(draws) == {"bonbon/no_pair_ratio": 0.75}


def test_settings_out_of_range_are_refused():
    for settings, named in [
        ({"n": 1}, "n=1 must be at least 2"),
        ({"contrast": "kto"}, "contrast='kto' must be one of ipo, dpo"),
        ({"sft_weight": 1.5}, "sft_weight=1.5"),
        ({"sft_weight": -0.1}, "sft_weight=-0.1"),
    ]:
        with pytest.raises(ConfigError, match=named):
            BoNBoN(**settings)
    assert BoNBoN(5).smallest_group == 5
