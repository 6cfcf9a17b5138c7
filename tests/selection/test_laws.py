"""Each rule against laws that are enumerated or worked by hand; its limits, ties, nulls and order."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.selection import RULES, Candidates, parse_rule
from nonpareil.selection.laws import (
    best_of_n,
    chi_square,
    length,
    likelihood,
    mbr,
    mbr_best_of_n,
    poisson,
    poisson_draws,
    soft,
)
from nonpareil.selection.votes import best_of_majority, majority, majority_of_the_bests, weighted_majority

NAN = math.nan
EVERY = [
    *("best_of_n", "best_of_n:n=2", "soft:temperature=0.7", "poisson:n=2.5", "likelihood:weight=0.3"),
    *("likelihood:weight=2,per_token=true", "length:weight=3", "mbr", "mbr_best_of_n:weight=0.5"),
    *("chi_square:beta=0.4", "majority", "weighted_majority", "weighted_majority:temperature=0.5"),
    *("best_of_majority:alpha=0.4", "majority_of_the_bests", "majority_of_the_bests:n=3"),
]


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def answers(*values: int) -> torch.Tensor:
    return torch.tensor([values])


def candidates(rows: int = 40, size: int = 6, seed: int = 0, share_null: float = 0.2) -> Candidates:
    """Rewards on a coarse grid, so that they tie; some null; all that any rule reads."""
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 4, (rows, size), generator=draw).double() / 2
    rewards[torch.rand(rows, size, generator=draw) < share_null] = NAN
    similarity = torch.randint(0, 5, (rows, size, size), generator=draw).double() / 4
    return Candidates(
        rewards,
        torch.randint(-1, 3, (rows, size), generator=draw),
        -torch.randint(1, 30, (rows, size), generator=draw).double(),
        similarity,
        torch.randint(1, 20, (rows, size), generator=draw).double(),
    )


def test_every_rule_has_a_case():
    assert {parse_rule(one).name for one in EVERY} == {*RULES}


@pytest.mark.parametrize("written", EVERY)
def test_a_law_is_one_wherever_something_can_be_chosen(written):
    given, rule = candidates(), parse_rule(written)
    law = rule.law(given)
    assert law.dtype == torch.float64
    assert (law >= 0).all()
    assert (law[given.rewards.isnan()] == 0).all()
    if "answers" in rule.needs:
        assert (law[given.answers < 0] == 0).all()
        could = ((given.answers >= 0) & ~given.rewards.isnan()).any(1)
    else:
        could = (~given.rewards.isnan()).sum(1) >= (
            getattr(rule, "n", None) or 1 if rule.name == "best_of_n" else 1
        )
    assert torch.allclose(law.sum(1), could.double(), atol=1e-12)


@pytest.mark.parametrize("written", EVERY)
def test_no_place_is_favoured(written):
    """Ties too: candidates in another order have the law in that order."""
    given, rule = candidates(seed=1), parse_rule(written)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    moved = Candidates(
        given.rewards[:, order],
        given.answers[:, order],
        given.logprobs[:, order],
        given.similarity[:, order][:, :, order],
        given.lengths[:, order],
    )
    assert torch.allclose(rule.law(moved), rule.law(given)[:, order], atol=1e-12)


@pytest.mark.parametrize("written", EVERY)
def test_a_null_is_as_if_it_had_not_been_drawn(written):
    """Its answer does not vote, nor is anything compared to it."""
    given, rule = candidates(seed=2, share_null=0), parse_rule(written)
    if "n" in rule.parameters() and rule.name != "best_of_n":
        assert rule.n is None or rule.n < 6
    rewards = given.rewards.clone()
    rewards[:, 4] = NAN
    with_null = Candidates(rewards, given.answers, given.logprobs, given.similarity, given.lengths)
    left = [0, 1, 2, 3, 5]
    assert torch.allclose(rule.law(with_null)[:, left], rule.law(given.without(4)), atol=1e-12)


@pytest.mark.parametrize("written", EVERY)
def test_all_null_and_infinite(written):
    given, rule = candidates(rows=2), parse_rule(written)
    nothing = Candidates(
        torch.full((2, 6), NAN), given.answers, given.logprobs, given.similarity, given.lengths
    )
    assert rule.law(nothing).eq(0).all()
    endless = given.rewards.clone()
    endless[1, 2] = math.inf
    with pytest.raises(DataError, match="an infinity"):
        rule.law(Candidates(endless, given.answers, given.logprobs, given.similarity, given.lengths))


@pytest.mark.parametrize("written", EVERY)
def test_the_offset_of_rewards_means_nothing(written):
    """Of every rule but the one that adds rewards up."""
    given, rule = candidates(seed=4), parse_rule(written)
    if str(rule) == "weighted_majority":
        pytest.skip("it adds rewards up")
    for offset in (100.0, -7.0):
        moved = Candidates(
            given.rewards + offset, given.answers, given.logprobs, given.similarity, given.lengths
        )
        assert torch.allclose(rule.law(moved), rule.law(given), atol=1e-9)


def test_best_of_n_is_the_mean_over_subsets():
    rewards, n = [0.1, 0.5, 0.5, NAN, 0.9, 0.2], 3
    known = [place for place, reward in enumerate(rewards) if not math.isnan(reward)]
    chances: Counter[int] = Counter()
    for subset in itertools.combinations(known, n):
        top = max(rewards[place] for place in subset)
        best = [place for place in subset if rewards[place] == top]
        for place in best:
            chances[place] += 1 / len(best) / math.comb(len(known), n)
    # A subset with one of two equal draws and one with the other are as many: shares are those of the class.
    assert torch.allclose(best_of_n(row(*rewards), n=n), row(*[chances[place] for place in range(6)]))
    assert best_of_n(row(0.1, 0.5, 0.5, NAN)).tolist() == [[0, 0.5, 0.5, 0]]
    assert best_of_n(row(0.1, 0.5, NAN, NAN), n=3).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ConfigError, match="n = 5"):
        best_of_n(row(0.1, 0.5, NAN, NAN), n=5)


def test_soft():
    law = soft(row(0, math.log(2), NAN, math.log(5)), temperature=1)
    assert torch.allclose(law, row(1 / 8, 2 / 8, 0, 5 / 8))
    rewards = row(1, 3, 3, 2)
    assert torch.equal(soft(rewards, temperature=0), best_of_n(rewards))
    assert torch.allclose(soft(rewards, temperature=1e-3), best_of_n(rewards))
    assert torch.allclose(soft(rewards, temperature=1e9), torch.full((1, 4), 0.25, dtype=torch.float64))
    assert soft(row(1e6, -1e6), temperature=1e-4).tolist() == [[1, 0]]  # no overflow


def test_soft_nears_the_tilt_as_draws_are_added():
    """pi_ref exp(r / temperature), which it reaches as n grows: every distance is worked out over all draws."""
    reference, rewards, temperature = torch.tensor([0.5, 0.3, 0.2]).double(), row(0, 1, 2)[0], 0.5
    tilt = reference * (rewards / temperature).exp()
    tilt /= tilt.sum()
    distances = []
    for n in (1, 2, 4, 8):
        drawn = torch.tensor(list(itertools.product(range(3), repeat=n)))
        chosen = soft(rewards[drawn], temperature=temperature) * reference[drawn].prod(1, keepdim=True)
        law = torch.zeros(3).double().scatter_add(0, drawn.flatten(), chosen.flatten())
        distances.append((tilt * (tilt / law).log()).sum().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 4 * distances[2] > 8 * distances[3]


def test_poisson_mixes_best_of_n():
    rewards, n = row(1, 2, 2, 4), 2.5
    chances = [math.exp(-1.5) * 1.5**k / math.factorial(k) for k in range(3)]
    chances.append(1 - sum(chances))
    mixed = sum(chance * best_of_n(rewards, n=k) for k, chance in enumerate(chances, 1))
    assert torch.allclose(poisson(rewards, n=n), mixed)
    assert poisson_draws(n, 4) == pytest.approx(sum(k * chance for k, chance in enumerate(chances, 1)))
    assert poisson_draws(3, 60) == pytest.approx(3)
    assert torch.allclose(poisson(rewards, n=1), torch.full((1, 4), 0.25).double())
    assert torch.allclose(poisson(rewards, n=400), best_of_n(rewards))


def test_poisson_of_many_draws_has_the_papers_density():
    """(mu u + 1) exp(mu (u - 1)) at quantile u, mu = n - 1."""
    size, mean = 400, 2.0
    law = poisson(torch.arange(size).double()[None], n=1 + mean)[0]
    u = (torch.arange(size).double() + 0.5) / size
    assert torch.allclose(law * size, (mean * u + 1) * (mean * (u - 1)).exp(), atol=0.02)


def test_likelihood_and_length():
    rewards, logprobs, lengths = row(1, 1.5, NAN, 0), row(-2, -12, -1, -1), row(2, 40, 1, 1)
    assert likelihood(rewards, logprobs=logprobs, weight=0.0).tolist() == best_of_n(rewards).tolist()
    assert likelihood(rewards, logprobs=logprobs, weight=0.1).tolist() == [[1, 0, 0, 0]]
    assert likelihood(rewards, logprobs=logprobs, weight=100.0).tolist() == [
        [0, 0, 0, 1]
    ]  # the likeliest known
    # The sum favours the short: per token the long one is the likeliest.
    many = likelihood(rewards, logprobs=logprobs, weight=100.0, lengths=lengths, per_token=True)
    assert many.tolist() == [[0, 1, 0, 0]]
    unknown = likelihood(rewards, logprobs=row(-2, NAN, -1, -1), weight=0.1)
    assert unknown.tolist() == [[1, 0, 0, 0]]
    assert length(row(1, 1.2, 1.1), lengths=row(1, 2, 10), weight=0.0).tolist() == [[0, 1, 0]]
    assert length(row(1, 1.2, 1.1), lengths=row(1, 2, 10), weight=1.0).tolist() == [[0, 0, 1]]


def test_mbr_leaves_each_out_of_its_own_mean():
    similarity = torch.tensor([[[0.1, 0.6, 0.6], [0.5, 9.0, 0.5], [0.2, 0.2, 9.0]]]).double()
    rewards = row(0, 1, 1)
    assert mbr(rewards, similarity=similarity).tolist() == [
        [1, 0, 0]
    ]  # with themselves it would be the second
    assert mbr_best_of_n(rewards, similarity=similarity, weight=0.0).tolist() == best_of_n(rewards).tolist()
    assert mbr_best_of_n(rewards, similarity=similarity, weight=1.0).tolist() == [[0, 1, 0]]
    assert mbr_best_of_n(rewards, similarity=similarity, weight=1e3).tolist() == [[1, 0, 0]]
    assert mbr(row(NAN, 1, NAN), similarity=similarity).tolist() == [[0, 1, 0]]
    with pytest.raises(DataError, match="no finite number"):
        mbr(rewards, similarity=similarity * math.nan)


def test_chi_square_is_the_optimum():
    rewards, beta = row(0.0, 0.3, 0.5, 1.2, 1.2), 0.6

    def objective(law: torch.Tensor) -> torch.Tensor:
        return (law * rewards).sum(1) - beta / 2 * ((law * 5 - 1) ** 2).mean(1)

    law = chi_square(rewards, beta=beta)
    others = torch.distributions.Dirichlet(torch.full((5,), 0.5).double()).sample((20_000,))
    near = law + 0.05 * (others - law)
    assert (objective(torch.cat([others, near])) <= objective(law) + 1e-12).all()
    # By hand: all five stay above the bar, which the mean of relu((r - bar) / beta) = 1 gives.
    bar = rewards.mean() - beta if (rewards.min() > rewards.mean() - beta) else None
    if bar is not None:
        assert torch.allclose(law, (rewards - bar) / (5 * beta))
    weights = law[0] * 5
    chosen = weights > 0
    slopes = (weights[chosen][1:] - weights[chosen][0]) / (rewards[0][chosen][1:] - rewards[0][chosen][0])
    assert torch.allclose(slopes, torch.full_like(slopes, 1 / beta))
    assert torch.equal(chi_square(rewards, beta=0), best_of_n(rewards))
    assert torch.allclose(chi_square(rewards, beta=1e-6), best_of_n(rewards))
    assert torch.allclose(chi_square(rewards, beta=1e6), torch.full((1, 5), 0.2).double(), atol=1e-5)


def test_majority_and_its_ties():
    said = answers(7, 7, 3, 3, 9, -1, -1, -1)
    rewards = row(0, 1, 0, 1, 1, 1, 1, 1)
    assert majority(rewards, answers=said).tolist() == [[0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0]]
    # Answers share, not candidates: each gives its best.
    assert weighted_majority(rewards, answers=said).tolist()[0] == pytest.approx(
        [0, 1 / 3, 0, 1 / 3, 1 / 3, 0, 0, 0]
    )
    assert majority(row(NAN, 1, 0, 1, 1, 1, 1, 1), answers=said).tolist() == [[0, 0, 0.5, 0.5, 0, 0, 0, 0]]
    assert majority(rewards, answers=torch.full((1, 8), -1)).eq(0).all()


def test_weighted_majority_refuses_what_would_punish_frequency():
    rewards, said = row(-1, -1, -1.5), answers(0, 0, 1)
    with pytest.raises(DataError, match="one is negative"):
        weighted_majority(rewards, answers=said)
    assert weighted_majority(rewards, answers=said, temperature=1.0).tolist() == [[0.5, 0.5, 0]]
    assert weighted_majority(row(2, 0.5, 0.5), answers=answers(0, 1, 1)).tolist() == [[1, 0, 0]]


def test_best_of_majority():
    rewards, said = row(0.2, 0.4, 0.1, 0.3, 0.9), answers(0, 0, 1, 1, 2)
    rare_too = best_of_majority(rewards, answers=said, alpha=0.0)
    assert rare_too.tolist() == [[0, 0, 0, 0, 1]]  # the highest mean, whatever its frequency
    assert best_of_majority(rewards, answers=said, alpha=0.4).tolist() == [[0, 1, 0, 0, 0]]
    above_all = best_of_majority(rewards, answers=said, alpha=1.0)
    assert above_all.tolist() == [[0, 1, 0, 0, 0]]  # among the most frequent
    assert best_of_majority(row(-5, -9, -7), answers=answers(0, 0, 1), alpha=0.6).tolist() == [[1, 0, 0]]


def test_majority_of_the_bests_is_that_of_all_subsets():
    draw = random.Random(5)
    for _ in range(40):
        size = draw.randint(2, 7)
        rewards = [draw.choice([0.0, 0.5, 1.0, draw.random()]) for _ in range(size)]
        said, n = [draw.randint(0, 2) for _ in range(size)], draw.randint(1, size)
        wins: Counter[int] = Counter()
        for subset in itertools.combinations(range(size), n):
            top = max(rewards[place] for place in subset)
            best = [place for place in subset if rewards[place] == top]
            for place in best:
                wins[said[place]] += math.lcm(*range(1, size + 1)) // len(best)
        # Ties within a subset: its class shares evenly over all subsets, as the exact weights have it.
        modes = {answer for answer, count in wins.items() if count == max(wins.values())}
        law = majority_of_the_bests(row(*rewards), answers=answers(*said), n=n)[0]
        assert {said[place] for place in law.nonzero()[:, 0].tolist()} == modes
    rewards, said = row(3, 2, 1, 1), answers(0, 1, 1, 1)
    assert majority_of_the_bests(rewards, answers=said, n=4).tolist() == [[1, 0, 0, 0]]  # best-of-n
    assert majority_of_the_bests(rewards, answers=said, n=1).tolist() == [[0, 1, 0, 0]]  # the majority
    assert majority_of_the_bests(rewards, answers=said).tolist() == [[0.5, 0.5, 0, 0]]  # n = 2: one half each
    with pytest.raises(ConfigError, match="above the 4"):
        majority_of_the_bests(rewards, answers=said, n=5)


def test_low_precision_ties_are_those_of_its_own_numbers():
    rewards = torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.bfloat16)
    law = best_of_n(rewards)
    assert law.dtype == torch.float32
    assert law.tolist() == [[0.5, 0.5, 0]]
