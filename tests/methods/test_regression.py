"""Pointwise regression on a tabular policy: its expected gradient and where it ends, stored and online."""

import itertools
import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.regression import Regression
from tests.methods import tabular
from tests.methods.tabular import BINARY, F64, LOGITS, REFERENCE, STRICT, TIED

SETTINGS = {
    "n": 16,
    "target_floor": -4.0,
    "num_generations": 2,
    "num_reference_samples": 3,
    "quantile_estimator": "plug_in",
}
CASES = {
    "regression stored": Regression(8, -3.0, stored=True),
    "regression online": Regression(8, -math.inf, 2, 6),
}

NO_FLOOR = -math.inf


def stored_objective(method, rewards, m):
    """Half the mean squared error over every group, a plain loop; each sample ranked among the m - 1 others."""

    def objective(logits):
        log_ratio = logits.log_softmax(-1) - REFERENCE.log()
        estimate = tabular.log_tilt("harmonic", m - 1, method.n)
        total = torch.zeros((), dtype=F64)
        for group in itertools.product(range(len(REFERENCE)), repeat=m):
            probability = math.prod(REFERENCE[y].item() for y in group)
            for i, y in enumerate(group):
                others = [rewards[other] for j, other in enumerate(group) if j != i]
                below = sum(bool(other < rewards[y]) for other in others)
                at_or_below = sum(bool(other <= rewards[y]) for other in others)
                target = max(estimate(below, at_or_below), method.target_floor)
                total = total + probability / m * (log_ratio[y] - target) ** 2 / 2
        return total

    return objective


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize(("n", "m", "floor"), [(2, 4, NO_FLOOR), (6, 3, NO_FLOOR), (6, 3, -2.0)])
def test_expected_loss_of_stored_groups_is_the_mean_squared_error(rewards, n, m, floor):
    method = Regression(n, floor, stored=True)

    def ours(logits):
        return tabular.expected_loss(method, logits, rewards, REFERENCE, m)

    objective = stored_objective(method, rewards, m)
    torch.testing.assert_close(ours(LOGITS), objective(LOGITS))
    truth = tabular.numeric_gradient(objective, LOGITS)
    torch.testing.assert_close(tabular.gradient(ours, LOGITS), truth, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize(
    ("n", "m", "estimator", "floor"),
    [
        (2, 3, "harmonic", NO_FLOOR),
        (6, 2, "plug_in", NO_FLOOR),
        (6, 2, "harmonic", -2.0),
        (4, 2, "two_sample", NO_FLOOR),
    ],
)
def test_expected_gradient_online_is_that_of_the_backward_kl(rewards, n, m, estimator, floor):
    """On the policy's own draws: that of KL(pi || pi_ref exp(E[target]))."""
    method = Regression(n, floor, 2, m, estimator)
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, rewards, REFERENCE, m), LOGITS)
    estimate = tabular.log_tilt(estimator, m, n)
    target = tabular.expected_estimate(lambda b, a: max(estimate(b, a), floor), rewards, REFERENCE, m)
    truth = tabular.numeric_gradient(lambda z: tabular.kl(z, REFERENCE.log() + target), LOGITS)
    torch.testing.assert_close(found, truth, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "online"])
def test_large_groups_end_at_best_of_n(rewards, stored):
    reached = tabular.train_with_many(Regression(4, stored=stored), REFERENCE, rewards)
    torch.testing.assert_close(reached, distribution(REFERENCE, rewards, 4), atol=4e-3, rtol=0)


@pytest.mark.parametrize("rewards", [STRICT, BINARY], ids=["strict", "binary"])
@pytest.mark.parametrize("failing", [0.0, 0.2])
def test_small_groups_of_the_reference_end_where_the_mean_target_says(rewards, failing):
    """n = 8 > m = 6, many groups; the least squares of a policy, which must sum to 1, worked out apart."""
    n, m = 8, 6
    reached = tabular.train_with_groups(
        Regression(n, NO_FLOOR, stored=True), REFERENCE, rewards, m=m, rows=2048, failing=failing, lr=0.1
    )
    # Groups by how many others are left: a sample is in one of v with the chance of v - 1 of its m - 1 others.
    mean = torch.zeros(len(REFERENCE), dtype=F64)
    total = 0.0
    for v in range(2, m + 1):
        # The loss is a mean over the valid draws of each group, so a group counts once whatever its size.
        groups = math.comb(m, v) * (1 - failing) ** v * failing ** (m - v)
        mean += groups * tabular.expected_estimate(
            tabular.log_tilt("harmonic", v - 1, n), rewards, REFERENCE, v - 1
        )
        total += groups
    mean /= total

    def squared(log_pi):
        return (REFERENCE * (log_pi - REFERENCE.log() - mean) ** 2).sum()

    truth = tabular.train(squared, REFERENCE, steps=300)
    torch.testing.assert_close(reached, truth, atol=0.015, rtol=0)


def test_ranks_among_the_others_give_targets_of_mass_one():
    """sum pi_ref exp(E[target]) is 1 as a policy's must be; .417 if a sample's own rank were counted."""
    n, m, outcomes = 8, 8, 400
    rewards = torch.arange(outcomes, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randint(outcomes, (40_000, m), generator=generator)
    none = torch.zeros(len(anchors), 0, dtype=torch.long)
    uniform = torch.full((outcomes,), -math.log(outcomes), dtype=F64)
    targets = Regression(n, NO_FLOOR, stored=True).targets(
        tabular.draws_of(none, anchors, rewards, uniform, uniform)
    )
    mean = torch.zeros(outcomes, dtype=F64).index_add(
        0, anchors.flatten(), targets.anchor_target.flatten()
    ) / anchors.flatten().bincount(minlength=outcomes)
    assert mean.exp().mean().item() == pytest.approx(1.0, abs=0.05)


def test_targets_by_hand_with_failures_and_the_floor():
    """Rewards 5, 1, failed, 5 at n = 3: among the others, 1 has 0 of 2 at or below; each 5 has 1 below of 2."""
    nan = math.nan
    rewards = torch.tensor([[5.0, 1.0, nan, 5.0], [nan, 2.0, nan, nan]], dtype=F64)
    none, anchors = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    draws = tabular.draws_of(none, anchors, STRICT, LOGITS, LOGITS)
    targets = Regression(3, -1.5, stored=True).targets(
        type(draws)(**{**vars(draws), "anchor_rewards": rewards})
    )
    # 1: log 3 + 2 (H_0 - H_2) = -1.90, raised to -1.5. 5: 2 (H_2 - H_2) + log(1 + 1/2 + 1/4).
    five = math.log(1.75)
    expected = torch.tensor([[five, -1.5, 0.0, five], [0.0] * 4], dtype=F64)
    torch.testing.assert_close(targets.anchor_target, expected)
    assert targets.train_anchor.tolist() == [[True, True, False, True], [False] * 4]


def test_metrics_are_those_of_fresh_draws_only():
    draws = tabular.draws_of(
        torch.tensor([[2]]), torch.tensor([[0, 1]]), STRICT, LOGITS.log_softmax(-1), REFERENCE.log()
    )
    assert Regression(stored=True).metrics(draws) == {}
    assert Regression(3).metrics(draws)["log_tilt"] == pytest.approx(math.log(3))


def test_settings_out_of_range_are_refused():
    for settings, named in [
        ({"n": 1}, "n=1 must be at least 2"),
        ({"target_floor": 0.5}, "target_floor=0.5"),
        ({"num_generations": 0}, "num_generations=0"),
        ({"num_reference_samples": 0}, "num_reference_samples=0"),
        ({"quantile_estimator": "median"}, "quantile_estimator='median' must be one of"),
        ({"quantile_estimator": "two_sample"}, "num_reference_samples=16: quantile_estimator=two_sample"),
    ]:
        with pytest.raises(ConfigError, match=named):
            Regression(**settings)
    assert Regression.smallest_group == 2
