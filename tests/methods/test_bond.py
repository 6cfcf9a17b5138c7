"""BOND on a tabular policy: its expected gradient, where it ends, alone and in rounds."""

import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.advantages import advantages
from nonpareil.methods.bond import BOND
from tests.methods import tabular
from tests.methods.tabular import BINARY, F64, LOGITS, REFERENCE, STRICT, TIED

SETTINGS = {
    "n": 2,
    "num_generations": 3,
    "num_reference_samples": 5,
    "quantile_estimator": "plug_in",
    "jeffreys_weight": 0.2,
    "imitate": "all",
    "baseline": "prompt",
}
CASES = {
    "bond winner": BOND(3, 2, 6),
    "bond all, prompt": BOND(3, 3, 6, "inclusive_plug_in", 0.3, "all", "prompt"),
    "bond backward": BOND(8, 2, 6, "plug_in", 1.0),
}

FIVE = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=F64)


def jeffreys(method, rewards, m, reference=REFERENCE):
    """(1 - w) KL(pi_n || pi) + w KL(pi || pi_ref exp(E[estimate])), up to the entropy of pi_n."""
    w = method.jeffreys_weight
    best = distribution(reference, rewards, method.n)
    estimate = tabular.log_tilt(method.quantile_estimator, m, method.n)
    tilt = tabular.expected_estimate(estimate, rewards, reference, m)

    def objective(logits):
        forward = -(best * logits.log_softmax(-1)).sum()
        return (1 - w) * forward + w * tabular.kl(logits, reference.log() + tilt)

    return objective


@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
@pytest.mark.parametrize(
    ("n", "m", "settings"),
    [
        (2, 3, {"jeffreys_weight": 0.0}),
        (2, 3, {"jeffreys_weight": 0.0, "imitate": "all"}),
        (3, 3, {"jeffreys_weight": 0.3}),
        (2, 3, {"jeffreys_weight": 0.3, "imitate": "all", "quantile_estimator": "plug_in"}),
        (4, 2, {"jeffreys_weight": 1.0}),  # m < n
        (4, 3, {"jeffreys_weight": 1.0, "quantile_estimator": "inclusive_plug_in"}),
        (2, 2, {"jeffreys_weight": 0.5, "quantile_estimator": "two_sample"}),
    ],
)
def test_expected_gradient_is_that_of_the_jeffreys_divergence(rewards, n, m, settings):
    method = BOND(n, num_generations=2, num_reference_samples=m, baseline="prompt", **settings)
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, rewards, REFERENCE, m), LOGITS)
    truth = tabular.numeric_gradient(jeffreys(method, rewards, m), LOGITS)
    torch.testing.assert_close(found, truth, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("imitate", ["winner", "all"])
def test_a_baseline_over_the_batch_leaves_the_expected_gradient_as_it_is(imitate):
    """Over every pair of prompts; with one draw a prompt the baseline is the other prompt's return."""
    method = BOND(2, 1, 2, imitate=imitate, baseline="batch")
    rewards, reference, logits = STRICT[:2], torch.tensor([0.6, 0.4], dtype=F64), LOGITS[:2]
    found = tabular.gradient(lambda z: tabular.expected_loss_of_two(method, z, rewards, reference, 2), logits)
    truth = tabular.numeric_gradient(jeffreys(method, rewards, 2, reference), logits)
    torch.testing.assert_close(found, truth, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_ends_at_best_of_n(rewards, weight):
    method = BOND(4, 8, 2000, jeffreys_weight=weight, imitate="all")
    reached = tabular.train_with_many(method, REFERENCE, rewards)
    torch.testing.assert_close(reached, distribution(REFERENCE, rewards, 4), atol=3e-3, rtol=0)


@pytest.mark.parametrize("failing", [0.0, 0.2])
def test_winners_of_fresh_draws_end_at_best_of_n_with_failed_rewards_too(failing):
    method = BOND(4, 1, 16, jeffreys_weight=0.0)
    reached = tabular.train_with_groups(method, REFERENCE, TIED, m=16, rows=2048, failing=failing)
    torch.testing.assert_close(reached, distribution(REFERENCE, TIED, 4), atol=0.012, rtol=0)


def test_few_draws_end_where_the_estimate_says():
    """m = 2 < n = 6, w = 1: pi ∝ pi_ref exp(E[estimate]), not yet best-of-6."""
    method = BOND(6, 2, 2, jeffreys_weight=1.0)
    tilt = tabular.expected_estimate(tabular.log_tilt("harmonic", 2, 6), STRICT, REFERENCE, 2)
    fixed_point = (REFERENCE.log() + tilt).softmax(-1)
    reached = tabular.train_with_groups(method, REFERENCE, STRICT, m=2, rows=2048)
    torch.testing.assert_close(reached, fixed_point, atol=0.012, rtol=0)
    assert (reached - distribution(REFERENCE, STRICT, 6)).abs().max() > 0.02


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_rounds_of_best_of_n_reach_best_of_n_to_the_power(n):
    """Iterative BOND: BoN o BoN = Bo(N^2), the anchor refreshed at the end of each round."""
    rewards = torch.arange(5, dtype=F64)
    method, anchor = BOND(n, 8, 2000, imitate="all"), FIVE
    for rounds in (1, 2, 3):
        anchor = tabular.train_with_many(method, anchor, rewards)
        torch.testing.assert_close(anchor, distribution(FIVE, rewards, n**rounds), atol=0.01, rtol=0)


def test_the_return_is_worth_what_the_paper_says_by_hand():
    """p<= of 4 references, n = 2: inclusive plug-in and tie term, less the log-ratio, less the other's return."""
    method = BOND(2, 2, 4, "inclusive_plug_in", 1.0, baseline="prompt")
    log_pi = LOGITS.log_softmax(-1)
    own, anchors = torch.tensor([[0, 2]]), torch.tensor([[0, 1, 1, 2]])
    targets = method.targets(tabular.draws_of(own, anchors, STRICT, log_pi, REFERENCE.log()))
    first = math.log(1 / 4) - (log_pi[0] - REFERENCE[0].log())
    second = math.log(4 / 4) + math.log(1 + 3 / 4) - (log_pi[2] - REFERENCE[2].log())
    torch.testing.assert_close(targets.advantages, torch.stack([first - second, second - first])[None])


def test_only_the_side_that_weighs_something_is_trained_on():
    """What a weight of 0 leaves unread costs no log-probs."""
    own, anchors = torch.tensor([[0, 2]]), torch.tensor([[0, 1, 1, 2]])
    draws = tabular.draws_of(own, anchors, STRICT, LOGITS.log_softmax(-1), REFERENCE.log())
    trained = {}
    for weight in (0.0, 0.5, 1.0):
        targets = BOND(2, 2, 4, jeffreys_weight=weight).targets(draws)
        trained[weight] = (targets.train_policy.sum().item(), targets.train_anchor.sum().item())
    assert trained == {0.0: (0, 2), 0.5: (2, 2), 1.0: (2, 0)}


def test_advantages_by_hand():
    """The others are the batch's or the prompt's; a prompt's only valid draw has no others."""
    returns = torch.tensor([[1.0, 5.0], [3.0, math.nan]])
    valid = ~returns.isnan()
    assert advantages(returns, valid, "batch").tolist() == [[-3.0, 3.0], [0.0, 0.0]]
    assert advantages(returns, valid, "prompt").tolist() == [[-4.0, 4.0], [0.0, 0.0]]
    returns[1, 0] = 9.0
    assert advantages(returns, valid, "batch").tolist() == [[-6.0, 0.0], [6.0, 0.0]]
    assert advantages(returns, valid, "prompt").tolist() == [[-4.0, 4.0], [0.0, 0.0]]


def test_metrics_at_the_start_and_at_best_of_n():
    """Without ties the log-tilt's mean is log n - (n - 1), then log n - (n - 1) / n; kl_to_target ends at 0."""
    n, outcomes = 4, 2000
    rewards = torch.arange(outcomes, dtype=F64)
    reference = torch.full((outcomes,), 1 / outcomes, dtype=F64)
    method, generator = BOND(n, 8, 2000), torch.Generator().manual_seed(0)

    def metrics(pi):
        own = pi.multinomial(40_000, True, generator=generator)[None]
        anchors = torch.arange(outcomes)[None]
        return method.metrics(tabular.draws_of(own, anchors, rewards, pi.log(), reference.log()))

    assert metrics(reference) == pytest.approx(
        {"log_tilt": math.log(n) - (n - 1), "kl_to_target": n - 1 - math.log(n)}, abs=0.05
    )
    assert metrics(distribution(reference, rewards, n)) == pytest.approx(
        {"log_tilt": math.log(n) - (n - 1) / n, "kl_to_target": 0.0}, abs=0.02
    )


def test_settings_out_of_range_are_refused():
    for settings, named in [
        ({"n": 1}, "n=1 must be at least 2"),
        ({"num_generations": 0}, "num_generations=0"),
        ({"num_reference_samples": 0, "jeffreys_weight": 1}, "num_reference_samples=0"),
        ({"jeffreys_weight": 1.5}, "jeffreys_weight=1.5"),
        ({"quantile_estimator": "median"}, "quantile_estimator='median' must be one of plug_in"),
        ({"imitate": "best"}, "imitate='best' must be one of winner, all"),
        ({"baseline": "mean"}, "baseline='mean' must be one of batch, prompt"),
        ({"baseline": "prompt"}, "num_generations=1 with baseline=prompt"),
        ({"quantile_estimator": "two_sample"}, "num_reference_samples=16: quantile_estimator=two_sample"),
        ({"n": 8, "num_reference_samples": 4}, "num_reference_samples=4 is fewer than n=8"),
    ]:
        with pytest.raises(ConfigError, match=named):
            BOND(**settings)
    assert BOND(8, num_reference_samples=4, jeffreys_weight=1.0).anchor_draws == 4
