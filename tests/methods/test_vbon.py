"""vBoN on a tabular policy: both bounds, quantiles of few and many references, and its clipped updates."""

import dataclasses
import math

import pytest
import torch

from nonpareil.errors import ConfigError
from nonpareil.maths.best_of_n import distribution
from nonpareil.methods.vbon import VBON
from tests.methods import tabular
from tests.methods.tabular import BINARY, F64, LOGITS, REFERENCE, STRICT, TIED

SETTINGS = {
    "n": 3,
    "bound": "l1",
    "num_generations": 5,
    "num_reference_samples": 6,
    "quantile_estimator": "harmonic",
    "baseline": "prompt",
    "num_iterations": 2,
    "epsilon": 0.1,
}
CASES = {
    "vbon exact": VBON(3, "exact", 2, 6),
    "vbon l1": VBON(3, "l1", 3, quantile_estimator="harmonic", baseline="prompt", stored=True),
    "vbon clipped": VBON(3, "exact", 2, 6, num_iterations=4, epsilon=0.1),
}

NONE = torch.zeros(1, 0, dtype=F64)


def log_target(method, rewards, m, reference=REFERENCE):
    """log pi_ref + E[the bound's log-ratio] over m references; p<= - p< is pi_ref(y), or counted where some tie."""

    def log_quantile(count):
        harmonic = tabular.harmonic_number(count) - tabular.harmonic_number(m)
        return math.log((count + 1) / (m + 1)) if method.quantile_estimator == "plug_in" else harmonic

    def bound(below, at_or_below, own):
        p = math.exp(log_quantile(below))
        if method.bound == "l1":
            return (method.n - 1) * math.log(p)
        if at_or_below > below:
            s = below / at_or_below
            return (method.n - 1) * log_quantile(at_or_below) + math.log((1 - s**method.n) / (1 - s))
        q = min(p + own, 1.0)
        ratio = (q**method.n - p**method.n) / (q - p) if q > p else method.n * p ** (method.n - 1)
        return math.log(ratio)

    each = [
        tabular.expected_estimate(lambda b, a, own=own: bound(b, a, own), rewards, reference, m)[y]
        for y, own in enumerate(reference.tolist())
    ]
    return reference.log() + torch.stack(each)


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize(
    ("n", "m", "settings"),
    [
        (2, 3, {"bound": "exact"}),
        (6, 2, {"bound": "exact", "quantile_estimator": "harmonic"}),  # m < n
        (3, 3, {"bound": "l1"}),
        (6, 2, {"bound": "l1", "quantile_estimator": "harmonic"}),
        (4, 2, {"bound": "exact", "num_iterations": 4}),
    ],
)
def test_expected_gradient_is_that_of_the_kl_to_the_bounds_target(rewards, n, m, settings):
    """With several iterations too: on the draws of this very policy the clipped loss has the plain gradient."""
    method = VBON(n, num_generations=2, num_reference_samples=m, baseline="prompt", **settings)
    found = tabular.gradient(lambda z: tabular.expected_loss(method, z, rewards, REFERENCE, m), LOGITS)
    target = log_target(method, rewards, m)
    truth = tabular.numeric_gradient(lambda z: tabular.kl(z, target), LOGITS)
    torch.testing.assert_close(found, truth, atol=1e-7, rtol=1e-6)


def test_a_baseline_over_the_batch_leaves_the_expected_gradient_as_it_is():
    method = VBON(3, "exact", 1, 2)
    rewards, reference, logits = STRICT[:2], torch.tensor([0.6, 0.4], dtype=F64), LOGITS[:2]
    found = tabular.gradient(lambda z: tabular.expected_loss_of_two(method, z, rewards, reference, 2), logits)
    target = log_target(method, rewards, 2, reference)
    torch.testing.assert_close(found, tabular.numeric_gradient(lambda z: tabular.kl(z, target), logits))


@pytest.mark.parametrize("rewards", [STRICT, TIED, BINARY], ids=["strict", "tied", "binary"])
@pytest.mark.parametrize("settings", [{}, {"quantile_estimator": "harmonic", "stored": True}])
def test_exact_ends_at_best_of_n(rewards, settings):
    reached = tabular.train_with_many(VBON(4, **settings), REFERENCE, rewards)
    torch.testing.assert_close(reached, distribution(REFERENCE, rewards, 4), atol=4e-3, rtol=0)


@pytest.mark.parametrize("estimator", ["plug_in", "harmonic"])
def test_exact_ends_near_best_of_n_with_ties_and_few_references(estimator):
    """One answer in ten is right: best-of-8 is right .570 of the time, and 16 references must do to get there."""
    method, m = VBON(8, quantile_estimator=estimator), 16
    reference, rewards = torch.tensor([0.9, 0.1], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    target = torch.zeros(2, dtype=F64)
    for right in range(m + 1):
        anchors = torch.tensor([[0] * (m - right) + [1] * right])
        draws = tabular.draws_of(torch.tensor([[0, 1]]), anchors, rewards, reference.log(), reference.log())
        target += math.comb(m, right) * 0.1**right * 0.9 ** (m - right) * method.log_target(draws)[0]
    reached = (reference.log() + target).softmax(-1)
    assert distribution(reference, rewards, 8)[1].item() == pytest.approx(0.570, abs=1e-3)
    assert reached[1].item() == pytest.approx(0.570, abs=0.01)


def test_l1_ends_at_its_own_law():
    """pi ∝ pi_ref F^(n-1), F strict: the worst outcome goes, the best gains more than best-of-n gives it."""
    reached = tabular.train_with_many(VBON(3, "l1"), REFERENCE, STRICT)
    below = torch.tensor([0.0, 0.5, 0.8], dtype=F64)
    fixed_point = REFERENCE * below**2 / (REFERENCE * below**2).sum()
    torch.testing.assert_close(reached, fixed_point, atol=4e-3, rtol=0)
    assert (reached - distribution(REFERENCE, STRICT, 3)).abs().max() > 0.1


def test_l1_with_binary_rewards_leaves_no_wrong_answer_at_all():
    """Best-of-2 of a success rate of .2 succeeds .36 of the time, l1 always: only `exact` minds ties."""
    assert distribution(REFERENCE, BINARY, 2)[2].item() == pytest.approx(0.36)
    assert tabular.train_with_many(VBON(2, "l1"), REFERENCE, BINARY)[2] > 0.99


@pytest.mark.parametrize("failing", [0.0, 0.2])
def test_few_cached_references_end_where_the_bound_says(failing):
    """m = 3 < n = 5, each prompt its own draws; failed rewards leave fewer of them, and the law between m's."""
    method = VBON(5, "exact", 2, stored=True)
    reached = tabular.train_with_groups(method, REFERENCE, STRICT, m=3, rows=1024, failing=failing)
    # A share of `failing` of the m references is gone; a prompt left with none takes no part.
    chances = {
        v: math.comb(3, v) * (1 - failing) ** v * failing ** (3 - v) / (1 - failing**3) for v in (1, 2, 3)
    }
    log_pi = sum(chance * log_target(method, STRICT, v) for v, chance in chances.items())
    torch.testing.assert_close(reached, log_pi.softmax(-1), atol=0.015, rtol=0)


# --- The paper's clipped updates


def step(policy, sampled, rewards, settings, references=(0.0, 1.0, 2.0)):
    """The gradient of the loss of one prompt's draws [k, t] by their log-probs, on draws made at `sampled`."""
    method = VBON(2, num_generations=len(rewards), baseline="prompt", stored=True, **settings)
    draws = tabular.ScoredDraws(
        policy_rewards=torch.tensor([rewards], dtype=F64),
        anchor_rewards=torch.tensor([references], dtype=F64),
        policy_token_logprobs=sampled[None],
        completion_mask=sampled[None] < 0,
        anchor_logprobs_of_policy=sampled.sum(-1)[None] - 0.1,
        anchor_token_logprobs=torch.zeros(1, len(references), 1, dtype=F64),
        tie_breaker=torch.full((1, len(references)), 0.5),
    )
    targets = method.targets(draws)
    now = policy.clone().requires_grad_()
    loss = method.loss(now[None], torch.zeros(1, len(references), policy.shape[-1], dtype=F64), targets)
    return torch.autograd.grad(loss.sum(), now)[0], targets.advantages[0]


# Two completions of three and two tokens; the first is the better one. 0 behind the end.
SAMPLED = torch.tensor([[-1.0, -2.0, -0.5], [-0.7, -1.5, 0.0]], dtype=F64)


def test_the_first_iterations_gradient_is_the_plain_one():
    plain, advantages = step(SAMPLED, SAMPLED, [2.5, 0.5], {})
    clipped, _ = step(SAMPLED, SAMPLED, [2.5, 0.5], {"num_iterations": 4, "epsilon": 0.2})
    assert advantages[0] > 0 > advantages[1]
    assert plain[0, 0] == -advantages[0] / 2
    torch.testing.assert_close(clipped[SAMPLED < 0], plain[SAMPLED < 0])
    assert clipped[1, 2] == 0  # behind the end


def test_a_token_outside_the_clip_stops_contributing_and_inside_weighs_its_ratio():
    """Good completion: no push past 1 + epsilon. Bad one: none below 1 - epsilon. The way back stays open."""
    ratio = torch.tensor([[1.3, 1.1, 0.6], [0.7, 1.4, 1.0]], dtype=F64)
    gradient, advantages = step(
        SAMPLED + ratio.log(), SAMPLED, [2.5, 0.5], {"num_iterations": 2, "epsilon": 0.2}
    )
    good, bad = (advantages / 2).tolist()
    expected = [[0.0, -1.1 * good, -0.6 * good], [0.0, -1.4 * bad, 0.0]]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=F64))
    wider, _ = step(SAMPLED + ratio.log(), SAMPLED, [2.5, 0.5], {"num_iterations": 2, "epsilon": 0.5})
    assert wider[0, 0] == pytest.approx(-1.3 * good)


def test_padding_of_a_batch_changes_nothing_of_the_clipped_loss():
    settings = {"num_iterations": 2}
    gradient, _ = step(SAMPLED + 0.1 * (SAMPLED < 0), SAMPLED, [2.5, 0.5], settings)
    wide = torch.cat([SAMPLED, torch.zeros(2, 4, dtype=F64)], -1)
    padded, _ = step(wide + 0.1 * (wide < 0), wide, [2.5, 0.5], settings)
    torch.testing.assert_close(padded[:, :3], gradient)
    assert not padded[:, 3:].any()


@pytest.mark.parametrize("rewards", [STRICT, TIED], ids=["strict", "tied"])
def test_several_iterations_on_one_batch_reach_best_of_n(rewards):
    """Four optimizer steps on one batch of draws, with the advantages of when it was drawn."""
    method = VBON(4, num_iterations=4, epsilon=0.2)
    anchors = tabular.proportional(REFERENCE, 2000)
    kept = {}

    def batch_loss(log_pi):
        if kept.get("left", 0) == 0:
            own = tabular.proportional(log_pi.detach().exp(), 4000)
            draws = tabular.draws_of(own, anchors, rewards, log_pi, REFERENCE.log())
            kept.update(left=method.num_iterations, own=own, targets=method.targets(draws))
        kept["left"] -= 1
        own = kept["own"]
        return tabular.loss_of(method, log_pi[own], log_pi[anchors], kept["targets"]).mean()

    reached = tabular.train(batch_loss, REFERENCE, steps=300, lr=0.05)
    torch.testing.assert_close(reached, distribution(REFERENCE, rewards, 4), atol=5e-3, rtol=0)


def test_metrics_give_the_kl_to_best_of_n_as_the_draws_see_it():
    method, anchors = VBON(4), tabular.proportional(REFERENCE, 20_000)

    def metric(pi):
        own = tabular.proportional(pi, 20_000)
        return method.metrics(tabular.draws_of(own, anchors, STRICT, pi.log(), REFERENCE.log()))

    best = distribution(REFERENCE, STRICT, 4)
    assert metric(best)["kl_to_target"] == pytest.approx(0, abs=1e-3)
    exact = (REFERENCE * (REFERENCE / best).log()).sum().item()
    assert metric(REFERENCE)["kl_to_target"] == pytest.approx(exact, abs=1e-3)
    draws = tabular.draws_of(anchors[:, :2], anchors[:, :2], STRICT, REFERENCE.log(), REFERENCE.log())
    failed = dataclasses.replace(draws, policy_rewards=torch.full((1, 2), math.nan))
    assert method.metrics(failed) == {}


def test_settings_out_of_range_are_refused():
    for settings, named in [
        ({"n": 1}, "n=1 must be at least 2"),
        ({"bound": "l2"}, "bound='l2' must be one of l1, exact"),
        (
            {"quantile_estimator": "inclusive_plug_in"},
            "quantile_estimator='inclusive_plug_in' must be one of",
        ),
        ({"baseline": "mean"}, "baseline='mean'"),
        ({"baseline": "prompt", "num_generations": 1}, "num_generations=1 with baseline=prompt"),
        ({"num_generations": 0}, "num_generations=0"),
        ({"num_reference_samples": 0}, "num_reference_samples=0"),
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"epsilon": 0.0}, "epsilon=0.0 must lie between 0 and 1"),
        ({"epsilon": 1.0}, "epsilon=1.0 must lie between 0 and 1"),
    ]:
        with pytest.raises(ConfigError, match=named):
            VBON(**settings)
