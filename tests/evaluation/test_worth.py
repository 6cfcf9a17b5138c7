"""N, efficiency, frontier and success rates where rewards tie: policies that are exactly best-of-N."""

import json
import math
import random
from html import unescape

import pytest
import torch

from nonpareil.evaluation import best_of_n_report, evaluate_groups, plots
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.report import write_report
from nonpareil.evaluation.rows import summary_rows
from nonpareil.evaluation.summary import headline
from nonpareil.evaluation.target import backward_kl
from nonpareil.evaluation.worth import frontier_points, worth_of
from nonpareil.maths import best_of_n
from nonpareil.maths.order_statistics import best_of_n_curve


def measured(draw, reference, rewards, n_of_policy, *, b=300, k=8, m=32, n=(2, 4, 8), seed=0):
    """The evaluation of exact best-of-n of one table, and both sides' groups."""
    reference, rewards = (torch.tensor(x, dtype=torch.float64).expand(b, -1) for x in (reference, rewards))
    policy = best_of_n.distribution(reference, rewards, n_of_policy)
    sides = draw(policy, rewards, k, seed), draw(reference, rewards, m, seed + 1)
    log_ratio = (policy / reference).log()
    got = evaluate_groups(
        sides[0].groups,
        sides[1].groups,
        policy_kl=(policy * log_ratio).sum(-1, keepdim=True).expand(-1, k),
        policy_log_ratio=log_ratio.gather(1, sides[0].outcomes),
        reference_log_ratio=log_ratio.gather(1, sides[1].outcomes),
        n=n,
    )
    return got, sides[0].groups, sides[1].groups


@pytest.mark.parametrize("q", [0.05, 0.1, 0.3])
def test_exact_best_of_8_under_zero_one_rewards_is_called_so(draw, q):
    got, *_ = measured(draw, [1 - q, q], [0.0, 1.0], 8, k=40)
    assert got.rewards_tie
    assert got.equivalent_n.estimate == pytest.approx(8, rel=0.06)
    assert got.equivalent_n.low < 8 < got.equivalent_n.high
    assert 0.93 < got.kl_efficiency.estimate < 1.08
    best = got.targets[2]
    p = 1 - (1 - q) ** 8
    assert best.win_rate_ceiling == pytest.approx(0.5 + (p - q) / 2, abs=0.01)
    assert best.kl_upper_bound == pytest.approx(got.kl.estimate, rel=0.05)
    assert [point.n for point in got.best_of_n] == [2, 4, 8, 16]  # as far as 32 draws show
    assert (got.best_of_n[2].kl, got.best_of_n[2].win_rate) == (best.kl_upper_bound, best.win_rate_ceiling)


def test_exact_best_of_4_of_a_rubric_is_called_so(draw):
    reference, rewards = [0.35, 0.25, 0.2, 0.15, 0.05], [1.0, 2, 3, 4, 5]
    got, *_ = measured(draw, reference, rewards, 4, k=40)
    assert got.equivalent_n.estimate == pytest.approx(4, rel=0.05)
    # Best-of-4 of these five levels spends 2% more than the best policy: exp(c * midrank), by enumeration.
    probs = torch.tensor(reference, dtype=torch.float64)
    mid = probs.cumsum(0) - probs / 2
    tilts = torch.softmax(
        probs.log() + torch.linspace(0, 12, 4001, dtype=torch.float64)[:, None] * mid, dim=-1
    )
    win = tilts @ mid
    spent = (tilts * (tilts / probs).log()).sum(-1)
    best = best_of_n.distribution(probs, torch.tensor(rewards, dtype=torch.float64), 4)
    exact = spent[(win >= best @ mid).nonzero()[0]].item() / (best * (best / probs).log()).sum().item()
    assert 0.95 < exact < 1
    assert got.kl_efficiency.estimate == pytest.approx(exact, abs=0.04)
    assert not got.comparison.zero_one


def test_where_the_win_rate_saturates_the_interval_says_so(draw):
    got, *_ = measured(draw, [0.5, 0.5], [0.0, 1.0], 16)
    assert (
        got.comparison.policy_mean.estimate == 1
    )  # every draw a success, which best-of-6 has nearly as often
    assert got.equivalent_n.estimate == got.largest_n == 31
    assert got.equivalent_n.high == 31
    assert 4 < got.equivalent_n.low < 9
    (row,) = [row for row in summary_rows(got) if row.label == "worth best-of-x"]
    assert (row.value, row.range[-7:]) == (">= 31", ", >= 31]"[-7:])
    assert "worth best-of-N, N >= 31 [6." in headline(got)
    # One failure among 2,400 is seen: the interval is as wide, the estimate a number.
    near, *_ = measured(draw, [0.5, 0.5], [0.0, 1.0], 11, seed=4)
    assert near.comparison.policy_mean.estimate < 1
    assert near.equivalent_n.low < near.equivalent_n.estimate < 31
    assert near.equivalent_n.high > 13


def test_a_policy_that_always_fails_may_have_been_unlucky(draw):
    got, policy, reference = measured(draw, [0.5, 0.5], [0.0, 1.0], 1, b=40, k=4)
    for group in policy:
        group.rewards = [0.0] * 4
    numbers = {"policy_kl": torch.ones(40, 4), "policy_log_ratio": torch.ones(40, 4)}
    got = evaluate_groups(policy, reference, **numbers)
    assert got.equivalent_n.estimate == 0
    assert 0.02 < got.equivalent_n.high < 0.4
    assert got.kl_efficiency.estimate == 0


def test_without_ties_the_figures_are_those_of_continuous_rewards(draw):
    """A win rate is worth w / (1 - w), and the frontier is the exponential tilt of a uniform quantile."""
    generator = torch.Generator().manual_seed(0)
    b, k, m = 60, 4, 16
    policy = torch.rand(b, k, generator=generator, dtype=torch.float64) ** 0.4
    reference = torch.rand(b, m, generator=generator, dtype=torch.float64)
    kl = torch.full((b,), 0.7, dtype=torch.float64)
    got = worth_of(policy, reference, kl, Bootstrap(0))
    win = (policy[:, :, None] > reference[:, None, :]).double().mean().item()
    assert not got.rewards_tie
    assert got.equivalent_n.estimate == pytest.approx(win / (1 - win), rel=1e-9)
    assert got.kl_efficiency.estimate == pytest.approx(best_of_n.least_kl(win) / 0.7, rel=1e-4)
    for point in frontier_points(reference):
        assert point.win_rate == pytest.approx(best_of_n.optimal_win_rate(point.kl), abs=1e-5)
    assert [point.n for point in got.best_of_n] == [2, 4, 8, 16, 32, 64]
    for point in got.best_of_n:
        assert point.kl == pytest.approx(best_of_n.kl_upper_bound(point.n))
        assert point.win_rate == pytest.approx(point.n / (point.n + 1))


def test_an_efficiency_of_less_kl_than_the_noise_of_the_win_rate_needs_is_not_known(draw):
    """The reference against itself, at nearly no KL, would have an efficiency of thousands by chance."""
    generator = torch.Generator().manual_seed(6)
    policy, reference = (torch.rand(60, m, generator=generator, dtype=torch.float64) for m in (4, 16))
    win = (policy[:, :, None] > reference[:, None, :]).double().mean((1, 2))
    error = Bootstrap(0).mean(win).standard_error
    assert win.mean() > 0.5
    needed = best_of_n.least_kl(0.5 + error)
    for kl, known in ((1.6e-7, False), (0.99 * needed, False), (1.01 * needed, True), (0.7, True)):
        found = worth_of(policy, reference, torch.full((60,), kl, dtype=torch.float64), Bootstrap(0))
        assert (found.kl_efficiency is not None) == known
    failed, spent = policy.clone(), torch.full((60,), 1.6e-7, dtype=torch.float64)
    failed[-1], spent[-1] = torch.nan, 5.0  # the KL of a prompt without a pair says nothing of the others
    assert worth_of(failed, reference, spent, Bootstrap(0)).kl_efficiency is None
    spent = torch.full((60,), 0.7, dtype=torch.float64)
    spent[0] = torch.nan
    assert worth_of(policy, reference, spent, Bootstrap(0)).kl_efficiency is not None
    one = worth_of(policy[:1], reference[:1], torch.full((1,), 1e-3, dtype=torch.float64), Bootstrap(0))
    assert one.kl_efficiency is not None  # one prompt has no noise to compare with

    got, ours, theirs = measured(draw, [0.5, 0.5], [0.0, 1.0], 1.0, b=40)
    numbers = {"policy_kl": torch.full((40, 8), 1e-6), "policy_log_ratio": torch.zeros(40, 8)}
    got = evaluate_groups(ours, theirs, **numbers)
    assert got.kl_efficiency is None
    (row,) = [row for row in summary_rows(got) if row.label == "KL efficiency"]
    assert row.value == "—"
    assert row.note.endswith("not known: the noise of the win rate alone would need as much KL")


def test_order_failures_and_monotone_transforms_change_nothing(draw):
    _, policy, reference = measured(draw, [0.4, 0.35, 0.25], [0.0, 0.5, 1.0], 3, b=40)
    for group in (*policy[:5], *reference[:5]):
        group.rewards[1] = None
    policy[7].rewards = [None] * 8
    kl = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))

    def figures(rows=range(40)):
        values = {"policy_kl": kl[list(rows)], "policy_log_ratio": kl[list(rows)]}
        got = evaluate_groups([policy[i] for i in rows], reference, **values)
        return got.equivalent_n, got.kl_efficiency, got.comparison.frontier, got.best_of_n, got.largest_n

    before = figures()
    assert before[0].num_prompts == 39
    assert before == figures(random.Random(0).sample(range(40), 40))
    for group in (*policy, *reference):
        group.rewards = [None if value is None else 10 * math.exp(value) - 3 for value in group.rewards]
    assert before == figures()


def test_success_rate_and_pass_at_n_go_by_their_names(draw, tmp_path):
    got, policy, reference = measured(draw, [0.9, 0.1], [0.0, 1.0], 4, b=60, n=(2, 4, 16))
    rows = {row.label: row for row in summary_rows(got) if row.section == "Reward"}
    assert rows["success rate (pass@1), policy"].interval == got.comparison.policy_mean
    for n in (2, 4, 16):
        # Unbiased: one less the share of n-subsets of a group's draws that all fail.
        failures = [group.rewards.count(0.0) for group in reference]
        expected = sum(1 - math.comb(f, n) / math.comb(32, n) for f in failures) / 60
        assert rows[f"pass@{n}, reference"].interval.estimate == pytest.approx(expected)
    assert "pass@4, policy" in rows
    assert "pass@16, policy" not in rows  # of 8 draws
    rates = got.comparison.policy_mean.estimate, got.comparison.reference_mean.estimate
    assert headline(got).startswith(f"Success rate {rates[0]:.2f}".replace("0.", "."))
    assert f"(reference {rates[1]:.2f}, pass@16 ".replace("0.", ".") in headline(got)
    curve = best_of_n_report(reference)
    page = write_report(got, curve, policy, reference, tmp_path, "T", {}).read_text()
    assert "success rate (pass@1), policy" in unescape(page)
    assert "whose rewards tie" in page
    content = json.loads((tmp_path / "report.json").read_text())["evaluation"]
    assert content["comparison"]["pass_at"][0]["n"] == 2
    assert content["comparison"]["frontier"][0] == {"kl": 0, "win_rate": 0.5}
    assert content["largest_n"] == 31

    policy[0].rewards[0] = 0.5  # partial credit: a mean reward, no success rate
    values = {"policy_kl": torch.ones(60, 8), "policy_log_ratio": torch.ones(60, 8)}
    other = evaluate_groups(policy, reference, **values)
    assert not other.comparison.zero_one
    assert other.comparison.pass_at == ()
    assert "mean, policy" in {row.label for row in summary_rows(other)}
    assert headline(other).startswith("Win rate")


def test_the_picture_draws_the_groups_own_frontier_and_best_of_n(draw):
    got, *_ = measured(draw, [0.7, 0.3], [0.0, 1.0], 8, b=60)
    axes = plots.frontier_figure({"policy": got}).axes[0]
    limit, best = axes.get_lines()[:2]
    assert limit.get_ydata().max() == pytest.approx(
        0.85, abs=0.02
    )  # success in every answer: no more is to be had
    assert list(zip(best.get_xdata(), best.get_ydata(), strict=True)) == [
        (point.kl, point.win_rate) for point in got.best_of_n
    ]


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_the_bias_beside_the_backward_kl_bounds_it_under_ties(q):
    """The expectation over all groups of 8 rewards 0 and 1, for the reference itself as the policy."""
    m = 8
    groups = torch.stack([torch.cat([torch.ones(s), torch.zeros(m - s)]) for s in range(m + 1)]).double()
    probs = torch.tensor([math.comb(m, s) * q**s * (1 - q) ** (m - s) for s in range(m + 1)])
    for n in (2, 4, 16):
        p = 1 - (1 - q) ** n
        exact = (1 - q) * math.log((1 - q) / (1 - p)) + q * math.log(q / p)
        sides = [
            backward_kl(torch.zeros(m + 1, 1), torch.full((m + 1, 1), reward), groups, n)
            for reward in (0.0, 1.0)
        ]
        mean = (probs * ((1 - q) * sides[0] + q * sides[1])).sum().item()
        assert -(n - 1) / (m + 1) < mean - exact < 0.005


def test_each_target_says_its_bias(draw):
    got, *_ = measured(draw, [0.7, 0.3], [0.0, 1.0], 2, b=20, m=15, n=(4,))
    assert got.targets[0].backward_kl_bias == pytest.approx(3 / 16)
    (row,) = [row for row in summary_rows(got) if row.label == "N = 4, backward"]
    assert "biased low, by at most .188" in row.note


def test_one_reference_reward_a_prompt_shows_no_n(draw):
    got, *_ = measured(draw, [0.7, 0.3], [0.0, 1.0], 2, b=20, m=1, n=(1,))
    assert got.equivalent_n is None
    assert got.largest_n == 0
    assert "worth" not in headline(got)
    assert {row.label: row.value for row in summary_rows(got)}["worth best-of-x"] == "—"


def test_where_no_reward_differs_no_n_is_named(draw):
    """Best-of-N of a constant reward wins half of the time for every N: none is the policy's."""
    got, _, reference = measured(draw, [0.6, 0.4], [1.0, 1.0], 1, b=40, k=8, m=16)
    assert got.comparison.win_rate.estimate == 0.5
    assert got.equivalent_n is None
    assert "worth" not in headline(got)
    (row,) = [row for row in summary_rows(got) if row.label == "worth best-of-x"]
    assert (row.value, row.note) == ("—", "no two rewards of a prompt differ: every x has this win rate")
    curve = best_of_n_report(reference)
    assert {(p.reward.estimate, p.reward.high) for p in curve.points} == {(1.0, 1.0)}
    (low,) = {p.reward.low for p in curve.points}
    assert low == pytest.approx(0.025 ** (1 / 40), abs=0.01)  # Clopper and Pearson's for 40 of 40
    assert curve.recommendation().startswith("Best-of-16 gains nothing")


@pytest.mark.parametrize("reward", [0.1, -1 / 3, 1e8 + 0.1])
def test_best_of_n_of_equal_rewards_is_that_reward_to_the_last_digit(reward):
    for m in (3, 16, 31):
        curve = best_of_n_curve(torch.full((1, m), reward, dtype=torch.float64))
        assert curve.tolist() == [[reward] * m]


def test_two_tied_draws_a_prompt_show_no_efficiency(draw):
    """Exact best-of-2 would come out at 1.9 where 1 is the truth; three draws show it."""
    two, *_ = measured(draw, [0.7, 0.3], [0.0, 1.0], 2, m=2, n=(2,))
    assert two.kl_efficiency is None
    assert "efficiency" not in headline(two)
    (row,) = [row for row in summary_rows(two) if row.label == "KL efficiency"]
    assert row.note.endswith("rough with 2 reference draws: take 16 or more")
    three, *_ = measured(draw, [0.7, 0.3], [0.0, 1.0], 2, b=3000, m=3, n=(2,))
    assert three.kl_efficiency.estimate == pytest.approx(1, abs=0.1)


def test_pass_at_n_is_of_the_prompts_that_both_sides_score(draw):
    _, policy, reference = measured(draw, [0.5, 0.5], [0.0, 1.0], 2, b=4, k=4, m=4, n=(2,))
    for group, rewards in zip(
        reference, ([1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]), strict=True
    ):
        group.rewards = [float(x) for x in rewards]
    policy[2].rewards = [None] * 4
    values = {"policy_kl": torch.ones(4, 4), "policy_log_ratio": torch.ones(4, 4)}
    got = evaluate_groups(policy, reference, **values, n=(4, 2))
    assert [each.n for each in got.comparison.pass_at] == [2, 4]
    assert [each.reference.num_prompts for each in got.comparison.pass_at] == [3, 3]
    assert got.comparison.pass_at[0].reference.estimate == pytest.approx((1 / 2 + 0 + 5 / 6) / 3)
    assert "pass@4 .67" in headline(got)
    notes = [row.note for row in summary_rows(got) if row.label.startswith("pass@")]
    assert notes == ["any of 2 succeeds"] * 2 + ["any of 4 succeeds"] * 2


def test_no_interval_of_pass_at_n_contradicts_that_of_a_larger_n(draw):
    """A success among 32 draws of each of 40 prompts: a prompt without any may have gone unseen, at 31 as at 32."""
    got, _, reference = measured(draw, [0.9, 0.1], [0.0, 1.0], 8, b=40, n=(2, 4, 8))
    for group in reference:
        group.rewards = [1.0, *[0.0] * 31]
    lows = [point.reward.low for point in best_of_n_report(reference).points]
    assert lows == sorted(lows)
    assert lows[-2] == lows[-1] < 0.93
    assert [low for low in lows if low < 0.9] == [pytest.approx(n / 32) for n in range(1, 29)]
    lows = [each.policy.low for each in got.comparison.pass_at]
    assert lows == sorted(lows)


def test_the_headline_has_no_empty_brackets_and_a_word_for_what_is_odd(draw):
    one, *_ = measured(draw, [0.9, 0.1], [0.0, 1.0], 8, b=1)
    assert "—" not in headline(one)
    _, policy, reference = measured(draw, [0.5, 0.5], [0.0, 1.0], 2, b=40, k=8)
    values = {"policy_kl": torch.full((40, 8), 1e-2), "policy_log_ratio": torch.zeros(40, 8)}
    assert headline(evaluate_groups(policy, reference, **values)).endswith(", above 1 by noise")
    little = {"policy_kl": torch.full((40, 8), 2.9e-3), "policy_log_ratio": torch.zeros(40, 8)}
    _, same, _ = measured(draw, [0.51, 0.49], [0.0, 1.0], 1.03, b=40, k=8, seed=3)
    no_better = evaluate_groups(same, reference, **little)
    assert no_better.kl_efficiency.estimate == 0
    assert headline(no_better).endswith("KL efficiency .00, too noisy to tell")
    for group in reference:
        group.rewards = [0.0] * 32
    values["policy_kl"] = torch.ones(40, 8)
    said = "at least: the reference's draws show no win rate this high"
    unseen = evaluate_groups(policy, reference, **values)
    assert headline(unseen).endswith(f"KL efficiency .00, {said}")
    (row,) = [row for row in summary_rows(unseen) if row.label == "KL efficiency"]
    assert row.note.endswith(said)


def test_the_headline_says_where_a_policy_is_worse_than_its_reference(draw):
    _, policy, reference = measured(draw, [0.5, 0.5], [0.0, 1.0], 2, b=40, k=8)
    worse = evaluate_groups(
        reference, policy, policy_kl=torch.ones(40, 32), policy_log_ratio=torch.ones(40, 32)
    )
    assert "(worse than the reference), KL efficiency .00" in headline(worse)
    (row,) = [row for row in summary_rows(worse) if row.label == "worth best-of-x"]
    assert row.note.endswith("below 1 is worse than the reference")
