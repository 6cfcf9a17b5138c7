import json
import math
import random

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation import evaluate_groups
from nonpareil.evaluation.numbers import number
from nonpareil.evaluation.summary import headline, summary_table
from nonpareil.evaluation.target import backward_kl
from nonpareil.maths import best_of_n


def tilted(reference, rewards, strength):
    return torch.softmax(reference.log() + strength * rewards, dim=-1)


def exact_win_rate(policy, reference, rewards):
    wins = (rewards[:, :, None] > rewards[:, None, :]).double()
    wins += (rewards[:, :, None] == rewards[:, None, :]).double() / 2
    return torch.einsum("by,byz,bz->b", policy, wins, reference)


def exact_kl(p, q):
    return (p * (p.clamp(min=1e-300) / q).log()).sum(-1)


def measure(draw, policy, reference, rewards, k, m, n=(2, 4), seed=0):
    """The evaluation of two tables, with the numbers a caller would have computed from the models."""
    sides = draw(policy, rewards, k, seed), draw(reference, rewards, m, seed + 1)
    log_ratio = (policy / reference).log()
    return evaluate_groups(
        sides[0].groups,
        sides[1].groups,
        policy_kl=exact_kl(policy, reference)[:, None].expand(-1, k),
        policy_log_ratio=log_ratio.gather(1, sides[0].outcomes),
        reference_log_ratio=log_ratio.gather(1, sides[1].outcomes),
        n=n,
    )


def six_completions(b=300, ties=False):
    generator = torch.Generator().manual_seed(7)
    reference = torch.softmax(torch.randn(b, 6, generator=generator, dtype=torch.float64) * 0.5, dim=-1)
    rewards = torch.tensor([0.0, 0, 1, 1, 1, 2] if ties else [0.3, -1.0, 2.0, 0.1, 0.9, 1.4]).double()
    return reference, rewards.expand(b, 6)


def within(interval, exact, bias=0.0):
    """Four standard errors, and the bias that the estimator's docstring admits."""
    return abs(interval.estimate - exact) < 4 * interval.standard_error + bias


@pytest.mark.parametrize("ties", [False, True])
def test_figures_match_enumeration(draw, ties):
    reference, rewards = six_completions(ties=ties)
    policy = tilted(reference, rewards, 0.8)
    got = measure(draw, policy, reference, rewards, k=16, m=128)

    assert within(got.comparison.win_rate, exact_win_rate(policy, reference, rewards).mean())
    assert within(got.comparison.policy_mean, (policy * rewards).sum(-1).mean())
    assert within(got.comparison.reference_mean, (reference * rewards).sum(-1).mean())
    assert got.kl.estimate == pytest.approx(exact_kl(policy, reference).mean().item())
    assert within(got.log_ratio, got.kl.estimate)
    for target in got.targets:
        best = best_of_n.distribution(reference, rewards, target.n)
        # Six completions tie often; the plug-in terms are O(1/128) off.
        assert within(target.backward_kl, exact_kl(policy, best).mean(), bias=0.01)
        assert within(target.forward_kl, exact_kl(best, policy).mean(), bias=0.01)
        assert target.backward_kl.standard_error < 0.03
        assert target.forward_kl.standard_error < 0.02


def test_each_prompt_has_its_own_figures(draw):
    """By prompt id, whatever order the groups come in; their means are the evaluation's."""
    policy, reference, rewards = (
        torch.eye(3)[[0, 2, 1]],
        torch.eye(3)[[1, 1, 1]],
        torch.arange(3.0).expand(3, 3),
    )
    ours, theirs = (draw(side.double(), rewards, 2, 0).groups for side in (policy, reference))
    for group in ours + theirs:
        values = group.rewards if group.prompt_id != "prompt-00002" else [None, None]
        group.rewards_by_name["judge"] = [value and 0.5 for value in values]
    kl = torch.tensor([[0.1, 0.3], [0.5, 0.7], [0.0, 1.0]])
    got = evaluate_groups(
        ours[::-1],
        theirs,
        policy_kl=kl.flip(0),
        policy_log_ratio=kl.flip(0),
        n=(2,),
        unseen_reward="judge",
    )
    assert got.by_prompt.prompt_ids == ("prompt-00000", "prompt-00001", "prompt-00002")
    assert got.by_prompt.win_rate == (0.0, 1.0, 0.5)
    assert got.by_prompt.kl == pytest.approx((0.2, 0.6, 0.5))
    assert got.by_prompt.unseen_win_rate == (0.0, 0.5, None)
    assert got.comparison.win_rate.estimate == 0.5


def test_the_plain_formulas_would_fail_with_ties(draw):
    """The tie terms are needed: without them forward KL is high by the KL within the classes."""
    reference, rewards = six_completions(ties=True)
    best = best_of_n.distribution(reference, rewards, 4)
    plain = best_of_n.kl_upper_bound(4)
    assert plain - exact_kl(best, reference).mean() > 0.1


def test_best_of_n_itself_has_no_distance_and_is_worth_n(draw):
    """500 completions, all rewards different: close enough to continuous for the formulas."""
    b, y, n = 200, 500, 4
    reference = torch.full((b, y), 1 / y, dtype=torch.float64)
    rewards = torch.arange(y).double().expand(b, y)
    policy = best_of_n.distribution(reference, rewards, n)
    got = measure(draw, policy, reference, rewards, k=16, m=64, n=(n,))
    assert within(got.targets[0].backward_kl, 0.0, bias=0.02)
    assert within(got.targets[0].forward_kl, 0.0, bias=0.02)
    assert within(got.equivalent_n, n)
    assert got.kl.estimate == pytest.approx(got.targets[0].kl_upper_bound, abs=0.01)
    # Best-of-4 is within .0040 win rate of the frontier: nearly, not quite, efficiency 1.
    assert within(got.kl_efficiency, best_of_n.least_kl(n / (n + 1)) / got.kl.estimate)


def test_the_exponential_tilt_is_fully_efficient(draw):
    b, y = 600, 400
    reference = torch.full((b, y), 1 / y, dtype=torch.float64)
    rewards = (torch.arange(y).double() + 0.5).expand(b, y) / y
    got = measure(draw, tilted(reference, rewards, 3.0), reference, rewards, k=16, m=64)
    assert within(got.kl_efficiency, 1.0, bias=0.005)
    assert got.kl_efficiency.standard_error < 0.035


def test_a_policy_against_itself(draw):
    reference, rewards = six_completions()
    got = measure(draw, reference, reference, rewards, k=8, m=8)
    assert got.comparison.win_rate.low <= 0.5 <= got.comparison.win_rate.high
    assert got.kl.estimate == pytest.approx(0, abs=1e-12)
    assert got.log_ratio.estimate == 0
    same = evaluate_groups(
        draw(reference, rewards, 8, 3).groups,
        draw(reference, rewards, 8, 3).groups,
        policy_kl=torch.zeros(300, 8),
        policy_log_ratio=torch.zeros(300, 8),
    )
    assert same.comparison.win_rate.estimate == 0.5
    assert same.kl_efficiency is None
    assert same.to_dict()["kl_efficiency"] is None
    assert same.targets[0].forward_kl is None
    assert "efficiency" not in headline(same)


def test_backward_kl_is_low_by_the_taylor_tail():
    """On the reference's own draws the truth is n - 1 - log n, and the bias (n-1) / (m+1)."""
    generator, n, m = torch.Generator().manual_seed(0), 8, 15
    rewards = torch.rand(4000, 4 + m, generator=generator, dtype=torch.float64)
    values = backward_kl(torch.zeros(4000, 4, dtype=torch.float64), rewards[:, :4], rewards[:, 4:], n)
    expected = n - 1 - math.log(n) - (n - 1) / (m + 1)
    assert values.mean().item() == pytest.approx(expected, abs=4 * values.std().item() / 4000**0.5)


def small(draw, b=4, k=3, m=4):
    reference, rewards = six_completions(b)
    return draw(reference, rewards, k, 0).groups, draw(reference, rewards, m, 1).groups


def numbers(b=4, k=3):
    return {"policy_kl": torch.rand(b, k), "policy_log_ratio": torch.rand(b, k)}


def test_ties_count_one_half_and_are_reported(draw):
    policy, reference = small(draw, b=1, k=2, m=2)
    policy[0].rewards, reference[0].rewards = [1.0, 2.0], [1.0, 0.0]
    comparison = evaluate_groups(policy, reference, **numbers(1, 2), n=(2,)).comparison
    # Pairs: 1-1 ties, 1-0 wins, 2-1 wins, 2-0 wins.
    assert (comparison.wins.estimate, comparison.ties.estimate, comparison.losses.estimate) == (0.75, 0.25, 0)
    assert comparison.win_rate.estimate == 0.875


def test_failed_rewards_are_left_out_and_counted(draw):
    policy, reference = small(draw, b=3, k=2, m=2)
    for group in policy:
        group.rewards = [1.0, None]
    for group in reference:
        group.rewards = [0.0, 2.0]
    policy[2].rewards = [None, None]
    got = evaluate_groups(policy, reference, **numbers(3, 2), n=(2, 4))
    comparison = got.comparison
    assert (comparison.policy_failed, comparison.reference_failed) == (4, 0)
    assert (got.num_prompts, comparison.num_prompts) == (3, 2)
    assert comparison.policy_mean.estimate == 1.0
    assert comparison.reference_mean.estimate == 1.0
    assert comparison.win_rate.estimate == 0.5
    assert got.kl.num_prompts == 3
    assert got.targets[0].backward_kl.num_prompts == 2
    policy[0].rewards = policy[1].rewards = [None, None]
    with pytest.raises(DataError, match="No prompt has a reward"):
        evaluate_groups(policy, reference, **numbers(3, 2))


def test_the_order_of_groups_does_not_matter(draw):
    reference_probs, rewards = six_completions(40)
    policy, reference = (
        draw(reference_probs, rewards, 3, 0).groups,
        draw(reference_probs, rewards, 5, 1).groups,
    )
    values, on_reference = numbers(40, 3), torch.rand(40, 5)
    first = evaluate_groups(policy, reference, **values, reference_log_ratio=on_reference)
    rows, others = random.Random(0).sample(range(40), 40), random.Random(1).sample(range(40), 40)
    second = evaluate_groups(
        [policy[i] for i in rows],
        [reference[i] for i in others],
        **{name: value[rows] for name, value in values.items()},
        reference_log_ratio=on_reference[others],
    )
    assert first == second


def test_lengths_and_distinct_ngrams_by_hand(draw):
    policy, reference = small(draw, b=2, k=1, m=2)
    for group, ids, score in zip(policy, ([1, 1, 1], [1, 2, 3]), (1.0, 0.0), strict=True):
        group.completion_token_ids, group.rewards, group.finish_reasons = [ids], [score], ["length"]
    for group in reference:
        group.completion_token_ids, group.rewards = [[5], [5, 6, 7]], [0.5, 0.5]
    got = evaluate_groups(policy, reference, **numbers(2, 1), n=(2,))
    assert (got.policy.mean_length.estimate, got.reference.mean_length.estimate) == (3, 2)
    assert (got.policy.stopped_ratio.estimate, got.policy.clipped_ratio.estimate) == (0, 1)
    assert got.reference.stopped_ratio.estimate == 1
    # One completion a prompt on both sides: 1/3 and 3/3; the reference's first has one token, so no 2-gram.
    assert got.policy.distinct["1"].estimate == pytest.approx(2 / 3)
    assert got.reference.distinct["1"].estimate == 1
    assert got.reference.distinct["2"] is None
    strata = {stratum.policy_is: stratum for stratum in got.length_strata}
    assert strata["longer"].share.estimate == strata["equal"].share.estimate == 0.5
    assert strata["longer"].win_rate.estimate == strata["equal"].win_rate.estimate == 0.5
    assert strata["shorter"].win_rate is None


def test_tied_pairs_count_one_half_in_every_length_stratum(draw):
    policy, reference = small(draw, b=1, k=3, m=2)
    policy[0].completion_token_ids, policy[0].rewards = [[1, 1, 1], [1, 1], [1]], [1.0, 1.0, 0.0]
    reference[0].completion_token_ids, reference[0].rewards = [[5, 5], [5, 5]], [1.0, 0.0]
    strata = {
        s.policy_is: s for s in evaluate_groups(policy, reference, **numbers(1, 3), n=(2,)).length_strata
    }
    # Longer: 1-1 ties, 1-0 wins. Equal: the same. Shorter: 0-1 loses, 0-0 ties.
    assert [strata[where].win_rate.estimate for where in ("longer", "equal", "shorter")] == [0.75, 0.75, 0.25]


def test_the_kl_is_resampled_with_its_prompts_win_rate(draw):
    """Where each prompt spends what its win rate asks, to first order, the ratio is steady; unpaired it is not."""
    b, k, m = 40, 4, 20
    policy, reference = small(draw, b, k, m)
    for row, (ours, theirs) in enumerate(zip(policy, reference, strict=True)):
        # Better than 12, 14 or 16 of 20.
        ours.rewards, theirs.rewards = [12 + 2 * (row % 3) - 0.5] * k, [float(rank) for rank in range(m)]
    win = torch.tensor([(12 + 2 * (row % 3)) / 20 for row in range(b)], dtype=torch.float64)
    mean = win.mean().item()
    slope = (best_of_n.least_kl(mean + 1e-5) - best_of_n.least_kl(mean - 1e-5)) / 2e-5
    spent = 2 * (best_of_n.least_kl(mean) + slope * (win - mean))
    kl = spent[:, None].expand(b, k)
    got = evaluate_groups(policy, reference, policy_kl=kl, policy_log_ratio=kl).kl_efficiency
    assert got.estimate == pytest.approx(0.5, rel=1e-3)
    assert got.high - got.low < 0.02
    order = torch.randperm(b, generator=torch.Generator().manual_seed(0))
    mixed = evaluate_groups(policy, reference, policy_kl=kl[order], policy_log_ratio=kl).kl_efficiency
    assert mixed.estimate == pytest.approx(got.estimate, rel=1e-9)
    assert mixed.high - mixed.low > 0.2


def test_unseen_reward_is_compared_alike(draw):
    policy, reference = small(draw)
    for side, value in ((policy, 1.0), (reference, 0.0)):
        for group in side:
            group.rewards_by_name["gold"] = [value] * (len(group) - 1) + [None]
    got = evaluate_groups(policy, reference, **numbers(), unseen_reward="gold")
    assert got.unseen.win_rate.estimate == 1.0
    assert (got.unseen.policy_failed, got.unseen.reference_failed) == (4, 4)
    with pytest.raises(DataError, match=r"no reward named 'silver' \(it has: gold, main\)"):
        evaluate_groups(policy, reference, **numbers(), unseen_reward="silver")


def test_prompts_must_match(draw):
    policy, reference = small(draw)
    with pytest.raises(
        DataError, match=r"1 ids only in the policy's.* 0 only.*'prompt-00003', policy.* 3 in both"
    ):
        evaluate_groups(policy, reference[:3], **numbers())
    with pytest.raises(DataError, match=r"1 of the policy groups repeat a prompt id.*'prompt-00000'"):
        evaluate_groups([*policy, policy[0]], reference, **numbers(5))
    with pytest.raises(DataError, match="policy side has no groups"):
        evaluate_groups([], reference, **numbers())


def test_bad_numbers_are_refused(draw):
    policy, reference = small(draw)
    with pytest.raises(DataError, match=r"policy_kl must be \[4, 3\].*got \[4, 2\]"):
        evaluate_groups(policy, reference, policy_kl=torch.rand(4, 2), policy_log_ratio=torch.rand(4, 3))
    with pytest.raises(DataError, match="policy_log_ratio holds 12 numbers that are not finite"):
        evaluate_groups(policy, reference, policy_kl=torch.rand(4, 3), policy_log_ratio=torch.rand(4, 3) / 0)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        evaluate_groups(policy, reference, **numbers(), n=(0,))
    policy[1].rewards = None
    with pytest.raises(DataError, match="'prompt-00001' has no rewards"):
        evaluate_groups(policy, reference, **numbers())


def test_json_has_no_nan_and_infinities_are_null(draw):
    policy, reference = small(draw)
    for side, value in ((policy, 1.0), (reference, 0.0)):
        for group in side:
            group.rewards = [value] * len(group)
    got = evaluate_groups(policy, reference, **numbers())
    as_dict = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert as_dict["equivalent_n"]["estimate"] == as_dict["largest_n"] == 3  # it always wins: 3 or more
    assert as_dict["comparison"]["win_rate"]["estimate"] == 1.0
    assert as_dict["kl_estimator"] == "exact per token along sampled completions"
    assert as_dict["kl"]["standard_error"] > 0
    assert "worth best-of-N, N >= 3" in headline(got)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.784, ".784"), (-0.05, "-.050"), (1.31, "1.310"), (-0.0001, ".000"), (None, "—"), (10.04, "10.040")],
)
def test_numbers_as_text(value, text):
    assert number(value) == text


def test_the_terminal_table_shows_every_figure(draw):
    from rich.console import Console

    policy, reference = small(draw)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(evaluate_groups(policy, reference, **numbers())))
    text = console.export_text()
    for label in (
        "Win rate",
        "KL efficiency",
        "N = 4, backward",
        "distinct-3, policy",
        "win rate where longer",
        "Intervals over 4 prompts are rough: take 30 or more.",
    ):
        assert label in text
