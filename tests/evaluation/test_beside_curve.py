"""Rules, gold reward, N beyond the draws and early stops off groups: against enumeration and known laws."""

import itertools
import json
import math

import pytest
import torch

from nonpareil.errors import ConfigError, DataError
from nonpareil.evaluation import best_of_n_report
from nonpareil.evaluation.beside_curve import Gold, beside_curve
from nonpareil.evaluation.beyond import beyond, early_stops
from nonpareil.evaluation.curve import win_rate_against_one
from nonpareil.evaluation.gold import gold_curve
from nonpareil.evaluation.intervals import Bootstrap
from nonpareil.evaluation.rule_values import rule_values
from nonpareil.maths.beta_binomial import BetaFit, pass_at_n
from nonpareil.maths.order_statistics import best_of_n_curve
from nonpareil.records import GroupNumbers
from nonpareil.selection import Candidates, parse_rules

NAN = math.nan


def drawn(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)).double()


def values(written, rewards, **others):
    found = rule_values(parse_rules(written), Candidates(rewards), 10.0, Bootstrap(), **others)
    return {one.rule: one for one in found.rules}, found


def test_a_rule_that_is_best_of_n_has_its_values():
    rewards = (drawn(12, 6) * 2).round() / 2
    names = ["best_of_n", "best_of_n:n=3", "soft:temperature=0", "chi_square:beta=0", "poisson:n=1"]
    by_rule, _ = values(names, rewards)
    curve, wins = best_of_n_curve(rewards).mean(0), win_rate_against_one(rewards).mean(0)
    for name in ("best_of_n", "soft:temperature=0.0", "chi_square:beta=0.0"):
        assert by_rule[name].reward.estimate == pytest.approx(curve[5].item())
        assert by_rule[name].win_rate.estimate == pytest.approx(wins[4].item()), "of five, against the sixth"
        assert (by_rule[name].draws, by_rule[name].tokens_per_prompt) == (6, 60)
    assert by_rule["best_of_n:n=3"].reward.estimate == pytest.approx(curve[2].item())
    assert by_rule["best_of_n:n=3"].win_rate.estimate == pytest.approx(wins[2].item())
    assert by_rule["best_of_n:n=3"].draws == 3
    one = by_rule["poisson:n=1.0"]
    assert one.reward.estimate == pytest.approx(rewards.mean().item())
    assert one.win_rate.estimate == pytest.approx(0.5)
    assert one.kl_upper_bound == pytest.approx(0, abs=1e-12)


def test_the_kl_bounds_that_of_the_answers():
    """On a policy of three answers: every group of four draws, the answers' law and its KL, exactly."""
    reference, reward = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.0, 1.0, 3.0]).double()
    groups = torch.tensor(list(itertools.product(range(3), repeat=4)))
    chances = reference[groups].prod(1)
    for rule in parse_rules(["best_of_n", "soft:temperature=1", "chi_square:beta=0.5", "poisson:n=2"]):
        law = rule.law(Candidates(reward[groups]))
        answers = torch.zeros(3).double().scatter_add(0, groups.flatten(), (law * chances[:, None]).flatten())
        kl = (answers * (answers / reference).log()).sum()
        bound = (chances * torch.xlogy(law, law * 4).sum(1)).sum()
        assert 0 < kl < bound
        by_rule, _ = values([str(rule)], reward[groups])
        assert by_rule[str(rule)].kl_upper_bound == pytest.approx(
            torch.xlogy(law, law * 4).sum(1).mean().item()
        )


def test_a_win_rate_is_that_of_a_fresh_draw():
    """Unbiased: over many groups of five it is how often the rule on four beats a draw from the same law."""
    rewards = drawn(4000, 5, seed=1)
    rule = parse_rules(["soft:temperature=0.5"])[0]
    law = rule.law(Candidates(rewards[:, :4]))
    beats = (law * (rewards[:, :4] > rewards[:, 4:]).double()).sum(1).mean().item()
    by_rule, _ = values(["soft:temperature=0.5"], rewards)
    assert by_rule[str(rule)].win_rate.estimate == pytest.approx(beats, abs=0.02)


def test_rules_rest_on_the_same_prompts_and_refuse_what_cannot_be():
    rewards = torch.tensor([[1.0, NAN, NAN], [0.0, 2.0, 1.0], [NAN] * 3]).double()
    by_rule, found = values(["best_of_n", "best_of_n:n=2"], rewards)
    assert (found.num_prompts, found.num_prompts_used) == (3, 1)
    assert by_rule["best_of_n"].reward.estimate == 2
    with pytest.raises(ConfigError, match="takes 4 completions"):
        values(["best_of_n:n=4"], rewards)
    with pytest.raises(DataError, match="of no prompt"):
        values(["best_of_n"], rewards[2:])
    with pytest.raises(DataError, match="reads answers"):
        values(["majority"], rewards)
    assert values(["best_of_n:n=3"], rewards)[0]["best_of_n:n=3"].win_rate is None, "no draw is left"


def overoptimised(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A proxy whose top third is false: gold rises with its quantile and falls beyond .7."""
    quantile = torch.rand(rows, size, generator=torch.Generator().manual_seed(2)).double()
    return quantile, torch.where(quantile < 0.7, quantile, 1.4 - quantile)


def test_the_gold_peak_is_found():
    """E[gold of best-of-n] = int n u^(n-1) gold(u) du, whose peak is worked out on a grid."""
    rewards, gold = overoptimised(3000, 16)
    u = (torch.arange(200_000).double() + 0.5) / 200_000
    truth = [(n * u ** (n - 1) * torch.where(u < 0.7, u, 1.4 - u)).mean().item() for n in range(1, 17)]
    curve = gold_curve("gold", rewards, gold, 16, Bootstrap())
    found = [point.gold.estimate for point in curve.points]
    assert found == pytest.approx(truth, abs=0.01)
    n, low, high = curve.stop_at
    best = truth.index(max(truth)) + 1
    assert low <= best <= high
    assert high < 10
    assert f"stop at N = {n} [{low}, {high}]" in curve.sentence()


def test_the_ends_of_a_gold_curve():
    rewards = drawn(60, 6, seed=3)
    same = gold_curve("gold", rewards, rewards, 6, Bootstrap())
    assert same.stop_at[0] == 6
    assert "no peak is seen up to N = 6" in same.sentence()
    against = gold_curve("gold", rewards, -rewards, 6, Bootstrap())
    assert against.stop_at == (1, 1, 1)
    assert "stop at N = 1 [1, 1]: choosing by the reward gains nothing" in against.sentence()
    flat = gold_curve("gold", rewards, torch.ones_like(rewards), 6, Bootstrap())
    assert flat.stop_at == (1, 1, 1)
    alone = gold_curve("gold", rewards[:1], rewards[:1], 6, Bootstrap())
    assert alone.stop_at == (6, 1, 6), "one prompt gives no interval"
    assert "[" not in alone.sentence()


def test_a_gold_value_that_is_null_is_no_draw():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, NAN]]).double()
    gold = torch.tensor([[5.0, 7.0, NAN], [1.0, 3.0, 9.0]]).double()
    curve = gold_curve("gold", rewards, gold, 2, Bootstrap())
    assert [point.gold.estimate for point in curve.points] == [pytest.approx(4), pytest.approx(5)]
    assert (curve.gold_missing, curve.num_prompts_used) == (1, 2)
    with pytest.raises(DataError, match="no prompt has 3 completions"):
        gold_curve("gold", rewards, gold, 3, Bootstrap())


def beta_groups(rows: int, size: int, alpha: float, beta: float) -> torch.Tensor:
    torch.manual_seed(0)
    rates = torch.distributions.Beta(alpha, beta).sample((rows, 1)).double()
    return (torch.rand(rows, size) < rates).double()


def test_pass_at_n_beyond_the_draws():
    alpha, beta = 0.6, 2.0
    truth = BetaFit(torch.tensor([alpha / (alpha + beta)]).double(), torch.tensor([alpha + beta]).double())
    found = beyond(beta_groups(800, 8, alpha, beta), 100, Bootstrap())
    assert [point.n for point in found.points] == [16, 32, 64, 100]
    for point in found.points:
        exact = pass_at_n(truth, point.n).item()
        assert point.pass_at_n.low - 0.02 < exact < point.pass_at_n.high + 0.02
    assert found.largest_gap < 0.02
    assert "a model, not measured" in found.sentence()
    with pytest.raises(ConfigError, match="rewards that are 0 or 1"):
        beyond(drawn(5, 4), 16, Bootstrap())
    with pytest.raises(ConfigError, match="no more than the 8"):
        beyond(beta_groups(5, 8, 1, 1), 8, Bootstrap())


def test_early_stops_of_successes_answer_as_best_of_n_does():
    """By walking through every order of the group."""
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).double()
    stops = early_stops(rewards, 4, 10.0)
    orders = list(itertools.permutations([0, 1, 0, 0]))
    taken = sum(order.index(1) + 1 for order in orders) / len(orders)
    assert stops.points[-1].draws == pytest.approx((taken + 4) / 2)
    assert stops.points[-1].tokens_per_prompt == pytest.approx(5 * (taken + 4))
    assert stops.at == "first success"
    by_quantile = early_stops(drawn(4, 8), 8, 10.0)
    last = by_quantile.points[-1]
    assert (last.n, last.draws, by_quantile.at) == (8, 4.5, "quantile")
    assert last.kl > last.kl_of_best_of_n


def test_what_was_asked_for_is_json_and_nothing_else():
    rewards = drawn(40, 6, seed=5)
    ids = [f"{place:02d}" for place in range(40)]
    numbers = GroupNumbers(
        ids, rewards.numpy(), torch.full((40, 6), 7.0).numpy(), torch.full((40,), 6).numpy()
    )
    curve = best_of_n_report(numbers)
    assert beside_curve(curve, Candidates(rewards)).to_dict() == {}
    gold = rewards.clone()
    gold[0, 0] = NAN
    both = beside_curve(
        curve, Candidates(rewards), rules=parse_rules(["best_of_n"]), gold=Gold("mine", gold), adaptive_n=True
    )
    told = json.loads(json.dumps(both.to_dict(), allow_nan=False))
    assert {*told} == {"rules", "gold", "early_stops"}
    assert told["gold"]["stop_at"] == 6
    assert told["gold"]["gold_missing"] == 1
    assert told["rules"]["num_prompts_used"] == 39, "the same prompts as those of the gold curve"
    assert told["rules"]["rules"][0]["gold"]["estimate"] == pytest.approx(
        told["gold"]["points"][-1]["gold"]["estimate"]
    )


def test_a_rule_that_takes_more_completions_than_are_scored_says_so():
    rewards = drawn(40, 6, seed=5)
    rewards[:, 4:] = NAN
    with pytest.raises(
        DataError, match=r"'best_of_n:n=5' takes 5 completions with a known reward.* more than 4; take 4"
    ):
        rule_values(parse_rules(["best_of_n", "best_of_n:n=5"]), Candidates(rewards), 1.0, Bootstrap())
    rewards[:25, 4] = 0.0
    found = rule_values(parse_rules(["best_of_n", "best_of_n:n=5"]), Candidates(rewards), 1.0, Bootstrap())
    assert found.too_few == {"best_of_n:n=5": 15}
    used, why = found.notes()
    assert used.startswith("25 of 40 prompts take part, the same for every rule")
    assert why == "best_of_n:n=5 leaves out 15 of them, which have fewer known rewards than it takes."
    assert rule_values(parse_rules(["best_of_n:n=4"]), Candidates(rewards), 1.0, Bootstrap()).notes() == []
