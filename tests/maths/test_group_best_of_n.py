"""Best-of-N and the frontier of reference groups whose rewards tie, against exact sums over all groups."""

import itertools
import math

import pytest
import torch

from nonpareil.maths import best_of_n, group_frontier
from nonpareil.maths.group_best_of_n import group_equivalent_n, group_kl, group_win_rate, largest_n, n_nodes
from nonpareil.maths.group_frontier import TiltTable, group_least_kl, highest_win_rate, tilt_table

F64 = torch.float64
SUCCESS = (0.05, 0.1, 0.3, 0.5, 0.7)


def column(*values):
    return torch.tensor(values, dtype=F64)


def zero_one_groups(m, q):
    """Every possible group of m rewards 0 and 1, by its number of successes, and its probability."""
    groups = torch.stack([torch.cat([torch.ones(k), torch.zeros(m - k)]) for k in range(m + 1)]).to(F64)
    probs = [math.comb(m, k) * q**k * (1 - q) ** (m - k) for k in range(m + 1)]
    return groups, torch.tensor(probs, dtype=F64)


def expected(figures, probs):
    return (probs[:, None] * figures).sum(0, keepdim=True)


def zero_one_best(q, n):
    """Win rate (ties one half) and KL of exact best-of-n at success rate q."""
    p = 1 - (1 - q) ** n
    return 0.5 + (p - q) / 2, p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def equivalent(win_rate, groups, probs):
    nodes = n_nodes(largest_n(groups))
    return group_equivalent_n(column(win_rate), expected(group_win_rate(groups, nodes), probs), nodes).item()


def mean_table(groups, probs):
    return TiltTable.of(expected(tilt_table(groups).columns(), probs))


def rubric_groups(probs, m):
    """Every multiset of m rewards out of len(probs) levels, and its probability."""
    groups, weights = [], []
    for drawn in itertools.combinations_with_replacement(range(len(probs)), m):
        counts = [drawn.count(level) for level in range(len(probs))]
        ways = math.factorial(m) / math.prod(map(math.factorial, counts))
        groups.append(drawn)
        weights.append(ways * math.prod(p**c for p, c in zip(probs, counts, strict=True)))
    return torch.tensor(groups, dtype=F64), torch.tensor(weights, dtype=F64)


def exact_win_rate(policy, reference, rewards):
    won = (rewards[:, None] > rewards[None, :]).to(F64) + (rewards[:, None] == rewards[None, :]).to(F64) / 2
    return (policy[:, None] * reference[None, :] * won).sum().item()


# --- Win rate, KL and the equivalent N


@pytest.mark.parametrize("q", SUCCESS)
def test_best_of_n_under_zero_one_rewards_is_worth_n(q):
    """The expectation over all groups of 32, so without any noise."""
    groups, probs = zero_one_groups(32, q)
    for n in (2, 3, 4, 6, 8):
        win, kl = zero_one_best(q, n)
        measured = expected(group_win_rate(groups, column(n)), probs).item()
        assert measured == pytest.approx(win, abs=1e-12)  # unbiased
        assert expected(group_kl(groups, column(n)), probs).item() == pytest.approx(kl, rel=0.005)
        assert equivalent(win, groups, probs) == pytest.approx(n, rel=0.001)


@pytest.mark.parametrize("q", SUCCESS)
def test_real_n_and_policies_worse_than_their_reference(q):
    groups, probs = zero_one_groups(32, q)
    for n in (0.3, 0.7, 1.0, 1.5, 2.5, 5.3):
        win, _ = zero_one_best(q, n)
        assert equivalent(win, groups, probs) == pytest.approx(n, rel=0.002)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_rubric_of_five_levels(n):
    levels, reference = torch.arange(5.0), column(0.35, 0.25, 0.2, 0.15, 0.05)
    best = best_of_n.distribution(reference, levels.to(F64), n)
    win, kl = exact_win_rate(best, reference, levels), (best * (best / reference).log()).sum().item()
    groups, probs = rubric_groups(reference.tolist(), 12)
    assert expected(group_win_rate(groups, column(n)), probs).item() == pytest.approx(win, abs=1e-12)
    assert expected(group_kl(groups, column(n)), probs).item() == pytest.approx(kl, rel=0.02)
    assert equivalent(win, groups, probs) == pytest.approx(n, rel=0.002)


def test_the_largest_n_is_all_that_the_groups_can_show():
    groups, probs = zero_one_groups(8, 0.3)
    assert largest_n(groups) == 7
    assert n_nodes(7)[-1] == 7
    assert equivalent(zero_one_best(0.3, 7)[0] + 1e-9, groups, probs) == pytest.approx(7)
    assert equivalent(0.999, groups, probs) == 7
    assert equivalent(0.0, groups, probs) == 0
    all_equal = torch.ones(3, 8, dtype=F64)
    assert [equivalent(w, all_equal, torch.full((3,), 1 / 3)) for w in (0.49, 0.5, 0.51)] == pytest.approx(
        [0, 1, 7]
    )
    assert n_nodes(1).tolist() == pytest.approx([i / 10 for i in range(11)])


def test_without_ties_every_value_is_the_continuous_formula():
    for m in (2, 5, 32):
        groups = torch.rand(7, m, generator=torch.Generator().manual_seed(m), dtype=F64)
        n = column(1, 1.5, 2, 4, 8, 16, 60)
        torch.testing.assert_close(group_win_rate(groups, n), best_of_n.win_rate(n).expand(7, -1))
        torch.testing.assert_close(group_kl(groups, n), best_of_n.kl_upper_bound(n).expand(7, -1))
    nodes, w = n_nodes(31), torch.linspace(0.02, 0.965, 200, dtype=F64)
    table = group_win_rate(groups, nodes).mean(0, keepdim=True).expand(200, -1)
    torch.testing.assert_close(
        group_equivalent_n(w, table, nodes), best_of_n.equivalent_n(w), rtol=1e-9, atol=1e-9
    )
    table = mean_table(groups, torch.full((7,), 1 / 7))
    same = TiltTable(table.win_rate.expand(200, -1), table.log_partition.expand(200, -1))
    torch.testing.assert_close(group_least_kl(w, same), best_of_n.least_kl(w), rtol=5e-5, atol=1e-9)
    kl = torch.linspace(0, 4, 200, dtype=F64)
    torch.testing.assert_close(highest_win_rate(kl, same), best_of_n.optimal_win_rate(kl), rtol=0, atol=5e-6)


def test_integers_are_the_mean_over_all_subsets():
    rewards = column(0, 2, 1, 2, 0, 3)
    for n in (1, 2, 4):
        wins = []
        for one in range(6):
            for best in itertools.combinations([i for i in range(6) if i != one], n):
                top = rewards[list(best)].max()
                wins.append(float(top > rewards[one]) + float(top == rewards[one]) / 2)
        assert group_win_rate(rewards[None], column(n)).item() == pytest.approx(sum(wins) / len(wins))


def test_failed_rewards_are_as_if_never_drawn_and_ranks_are_all_that_counts():
    rewards = torch.randint(0, 4, (20, 9), generator=torch.Generator().manual_seed(3)).to(F64)
    n = column(0.5, 1, 2.5, 6)
    shuffled = torch.cat([rewards.flip(1), torch.full((20, 3), torch.nan, dtype=F64)], dim=1)
    moved = rewards.exp() * 3 - 7
    for figures in (
        lambda x: group_win_rate(x, n),
        lambda x: group_kl(x, n.clamp(min=1)),
        lambda x: tilt_table(x).columns(),
    ):
        torch.testing.assert_close(figures(shuffled), figures(rewards), rtol=0, atol=1e-11)
        torch.testing.assert_close(figures(moved), figures(rewards), rtol=0, atol=0)
        nothing = torch.full((1, 5), torch.nan, dtype=F64)
        assert figures(nothing).isnan().all()
        assert torch.equal(figures(torch.cat([rewards, moved]))[20:], figures(moved))


def test_a_prompt_with_few_rewards_left_goes_on_rising():
    """Best-of-n from the group with replacement, on from m - 1: no prompt ends the whole curve."""
    rewards = column(0, 0, 1, math.nan, math.nan)[None]
    values = group_win_rate(rewards, column(1, 2, 2.0001, 4, 50))[0]
    assert values[0] == pytest.approx(0.5)
    assert values[1] == pytest.approx(2 / 3)  # each 0 loses to the best of the others, the 1 beats it
    assert (values.diff() > 0).all()
    assert values[2] == pytest.approx(values[1].item(), abs=1e-4)


# --- The frontier


@pytest.mark.parametrize("q", SUCCESS)
def test_exact_best_of_n_is_efficient_under_zero_one_rewards(q):
    """With two outcomes and one success rate best-of-n is on the frontier: the least KL is its own."""
    for m, tolerance in ((32, 0.01), (16, 0.02), (8, 0.08)):
        groups, probs = zero_one_groups(m, q)
        table = mean_table(groups, probs)
        for n in range(2, 9):
            win, kl = zero_one_best(q, n)
            assert group_least_kl(column(win), table).item() / kl == pytest.approx(1, abs=tolerance)


def test_no_tilt_of_a_rubric_beats_the_frontier_and_the_exponential_one_is_on_it():
    levels, reference = torch.arange(5.0).to(F64), column(0.35, 0.25, 0.2, 0.15, 0.05)
    # Groups that hold the levels in exactly their shares: the plug-in, which the jackknife leaves nearly as it is.
    group = torch.repeat_interleave(levels, (reference * 400).round().long())[None]
    table = tilt_table(group)
    mid = reference.cumsum(0) - reference / 2
    generator = torch.Generator().manual_seed(0)
    for c in (0.5, 2.0, 6.0):
        best = torch.softmax(reference.log() + c * mid, 0)
        win, kl = exact_win_rate(best, reference, levels), (best * (best / reference).log()).sum().item()
        assert group_least_kl(column(win), table).item() == pytest.approx(kl, rel=0.002)
        assert highest_win_rate(column(kl), table).item() == pytest.approx(win, abs=5e-4)
        for _ in range(20):
            other = torch.softmax(best.log() + 0.3 * torch.randn(5, generator=generator, dtype=F64), 0)
            rate, spent = (
                exact_win_rate(other, reference, levels),
                (other * (other / reference).log()).sum().item(),
            )
            assert group_least_kl(column(rate), table).item() <= spent * 1.002 + 1e-6


def test_one_tilt_serves_all_prompts():
    """Two prompts of success rates .1 and .6, exact groups: the optimum over all pairs of success rates reached."""
    rates = column(0.1, 0.6)
    groups = torch.stack([(torch.arange(1000) < 1000 * q).to(F64) for q in rates])
    table = mean_table(groups, torch.full((2,), 0.5))
    p = torch.linspace(0.1, 0.999, 1500, dtype=F64)
    spent = [torch.xlogy(p, p / q) + torch.xlogy(1 - p, (1 - p) / (1 - q)) for q in rates]
    win = [0.5 + (p - q) / 2 for q in rates]
    mean_kl, mean_win = (spent[0][:, None] + spent[1]) / 2, (win[0][:, None] + win[1]) / 2
    for wanted in (0.55, 0.62, 0.7):
        least = mean_kl[mean_win >= wanted].min().item()
        assert group_least_kl(column(wanted), table).item() == pytest.approx(least, rel=0.01)


def test_win_rates_at_the_ends_of_the_frontier():
    groups, probs = zero_one_groups(16, 0.5)
    table = mean_table(groups, probs)
    ends = group_least_kl(
        column(0.0, 0.3, 0.5, 0.9, 1.0),
        TiltTable(*(x.expand(5, -1) for x in (table.win_rate, table.log_partition))),
    )
    assert ends[:3].tolist() == [0, 0, 0]
    # Success in every answer is all that there is: log 2 nats, and no more for a win rate that only noise can show.
    assert ends[3] == ends[4] == pytest.approx(math.log(2), rel=0.02)
    assert group_least_kl(column(math.nan), table).isnan().all()
    assert highest_win_rate(column(0.0), table).item() == pytest.approx(0.5, abs=1e-6)
    assert highest_win_rate(column(50.0), table).item() == pytest.approx(0.75, abs=5e-4)
    assert group_frontier.TILTS[0] == 0
