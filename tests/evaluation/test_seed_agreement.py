"""How seeds of a method agree, where direction and noise are known."""

import json
import math
from dataclasses import replace

import pytest
import torch

from nonpareil.commands.compare.report import write_comparison
from nonpareil.commands.compare.results import compare_runs
from nonpareil.commands.compare.seeds import (
    BOTH,
    MORE_DATA,
    NEITHER,
    NOT_TOLD,
    ONE_POOL,
    OTHER_DIRECTION,
    SeedAgreement,
    seed_agreements,
)
from nonpareil.commands.compare.tables import seeds_table, tables
from nonpareil.errors import DataError
from nonpareil.evaluation.log_ratios import LogRatios
from nonpareil.maths.bootstrap import Interval
from tests.evaluation.test_comparison import CURVE, run

F64 = torch.float64
PROMPTS, DRAWS = 600, 8


def seeds_of(direction, noise, num_seeds=2, prompts=PROMPTS, zero_one=False, strengths=(1.0, 1.0, 1.0)):
    """Log-ratios whose direction has this rho squared, and of whose variance this share is the seed's own noise."""
    generator = torch.Generator().manual_seed(3)
    rank = torch.rand(prompts, DRAWS, generator=generator, dtype=F64)
    rewards = (rank > 0.7).double() if zero_one else rank
    quantile = (rewards - rewards.mean()) / rewards.std()

    def normal():
        return torch.randn(prompts, DRAWS, generator=generator, dtype=F64)

    shared = direction**0.5 * quantile + (1 - direction) ** 0.5 * normal()
    ids = tuple(str(prompt) for prompt in range(prompts))
    return {
        seed: LogRatios(
            ids, ids, strengths[seed] * ((1 - noise) ** 0.5 * shared + noise**0.5 * normal()) + seed, rewards
        )
        for seed in range(num_seeds)
    }


def agreement(seeds, one_pool=False):
    (found,) = seed_agreements({"m": list(seeds.values())}, {"m"} if one_pool else set())
    return found


def near(interval, expected):
    return abs(interval.estimate - expected) < 4 * interval.standard_error and interval.standard_error < 0.05


@pytest.mark.parametrize("zero_one", [False, True])
@pytest.mark.parametrize(("direction", "noise"), [(0.3, 0.07), (0.9, 0.6), (0.5, 0.5)])
def test_noise_and_direction_are_told_apart(direction, noise, zero_one):
    found = agreement(seeds_of(direction, noise, zero_one=zero_one))
    assert near(found.correlation, 1 - noise)
    assert near(found.rho_squared, direction * (1 - noise))
    assert near(found.without_noise, direction)
    assert found.noise == pytest.approx(1 - found.correlation.estimate)


def test_three_seeds_of_unequal_strength_are_three_pairs():
    found = agreement(seeds_of(0.4, 0.3, num_seeds=3, strengths=(1.0, 0.2, 5.0)))
    assert found.num_seeds == 3
    assert near(found.correlation, 0.7)
    assert near(found.without_noise, 0.4)
    pairs = seeds_of(0.4, 0.3, num_seeds=3)
    of_two = [agreement({i: pairs[i], j: pairs[j]}) for i, j in ((0, 1), (0, 2), (1, 2))]
    mean = sum(each.correlation.estimate for each in of_two) / 3
    assert found.correlation.estimate == pytest.approx(mean)


@pytest.mark.parametrize(
    ("direction", "noise", "says"),
    [
        (0.95, 0.5, MORE_DATA),
        (0.3, 0.05, OTHER_DIRECTION),
        (0.3, 0.5, BOTH),
        (0.95, 0.05, NEITHER),
        (0.8, 0.2, NOT_TOLD),
    ],
)
def test_it_says_what_would_help(direction, noise, says):
    assert agreement(seeds_of(direction, noise)).would_help == says


def test_few_prompts_do_not_tell():
    assert agreement(seeds_of(0.6, 0.3, prompts=4)).would_help == NOT_TOLD


@pytest.mark.parametrize(
    ("direction", "noise", "says"),
    [(0.3, 0.05, ONE_POOL), (0.3, 0.5, MORE_DATA), (0.95, 0.05, ONE_POOL), (0.95, 0.5, MORE_DATA)],
)
def test_what_a_shared_pool_hides_is_not_claimed(direction, noise, says):
    """The seeds' own noise is some of it for sure; a direction that looks poor may be the pool's noise."""
    assert agreement(seeds_of(direction, noise), one_pool=True).would_help == says


def test_seeds_that_turn_from_the_reward_are_not_praised():
    seeds = {
        seed: replace(ratios, log_ratio=-ratios.log_ratio) for seed, ratios in seeds_of(0.9, 0.05).items()
    }
    found = agreement(seeds)
    assert found.correlation.estimate > 0.9
    assert found.rho_squared.estimate < -0.8
    assert found.without_noise.estimate < -0.8
    assert found.would_help == OTHER_DIRECTION


def test_seeds_with_nothing_in_common_have_no_limit():
    seeds = seeds_of(0.0, 1.0)
    seeds[1] = replace(seeds[1], log_ratio=-seeds[0].log_ratio)
    found = agreement(seeds)
    assert found.correlation.estimate == pytest.approx(-1)
    assert found.without_noise is None
    assert found.would_help == MORE_DATA


def test_what_cannot_be_told_is_none():
    seeds = seeds_of(0.5, 0.5)
    still = {seed: replace(ratios, log_ratio=torch.ones(PROMPTS, DRAWS)) for seed, ratios in seeds.items()}
    tied = {seed: replace(ratios, rewards=torch.ones(PROMPTS, DRAWS)) for seed, ratios in seeds.items()}
    found = agreement(still)
    assert (found.correlation, found.rho_squared, found.without_noise, found.noise) == (None,) * 4
    assert found.would_help == NOT_TOLD
    found = agreement(tied)
    assert near(found.correlation, 0.5)
    assert (found.rho_squared, found.without_noise) == (None, None)
    assert seed_agreements({"m": [seeds[0]]}, set()) == ()


def test_a_completion_whose_reward_failed_is_left_out():
    seeds = seeds_of(0.5, 0.5)
    clean = agreement(seeds)
    for seed, ratios in seeds.items():
        worse = torch.cat([ratios.log_ratio, torch.full((PROMPTS, 1), 50.0 * seed, dtype=F64)], 1)
        failed = torch.cat([ratios.rewards, torch.full((PROMPTS, 1), math.nan, dtype=F64)], 1)
        seeds[seed] = replace(ratios, log_ratio=worse, rewards=failed)
    assert agreement(seeds).correlation.estimate == pytest.approx(clean.correlation.estimate)
    assert agreement(seeds).without_noise.estimate == pytest.approx(clean.without_noise.estimate)


def test_runs_on_other_draws_of_the_reference_are_refused():
    runs = compared()
    seeds = seeds_of(0.3, 0.05)
    other = replace(seeds[0], completions=("x", *seeds[0].completions[1:]))
    with pytest.raises(DataError, match=r"two, seed 1 and alone, seed 0 were evaluated on other completions"):
        compare_runs([*runs[:-1], replace(runs[-1], log_ratios=other)], CURVE)
    rescored = replace(seeds[1], rewards=seeds[1].rewards.flip(1))
    with pytest.raises(
        DataError, match=r"one, seed 0 and one, seed 1 .*or other rewards of them.*--overwrite"
    ):
        compare_runs([runs[0], replace(runs[1], log_ratios=rescored)], CURVE)


# --- In the comparison


def compared(**stored):
    seeds = seeds_of(0.3, 0.05)
    runs = [
        replace(run(name, seed, 0.6, 1.0), log_ratios=seeds[seed], stored=stored.get(name, False))
        for name in ("one", "two")
        for seed in (0, 1)
    ]
    return [*runs, replace(run("alone", 0, 0.7, 1.2), log_ratios=seeds[0])]


def test_the_comparison_tells_it_of_methods_with_two_seeds(tmp_path):
    report = compare_runs(compared(two=True), CURVE)
    assert [each.name for each in report.agreements] == ["one", "two"]
    assert [each.one_pool for each in report.agreements] == [False, True]
    table = seeds_table(report)
    assert [row[-1] for row in table.rows] == [OTHER_DIRECTION, ONE_POOL]
    assert table.rows[0][1].startswith(".95 [")
    assert "One stored pool serves every seed of two:" in table.note
    page = write_comparison(report, tmp_path, title="t", context={}).read_text()
    assert OTHER_DIRECTION in page
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["agreements"][0]["would_help"] == OTHER_DIRECTION
    assert content["agreements"][0]["correlation"]["estimate"] == pytest.approx(0.95, abs=0.02)
    assert "log_ratios" not in content["runs"][0]


def test_one_seed_each_has_no_such_table():
    report = compare_runs([r for r in compared() if r.seed == 0], CURVE)
    assert report.agreements == ()
    assert "Noise or direction" not in [table.title for table in tables(report)]


def test_the_words_follow_the_ends_of_the_intervals():
    def between(low, high):
        return Interval((low + high) / 2, low, high, 0.1, 40, 0)

    told = SeedAgreement("m", 2, False, between(0.5, 0.81), between(0.1, 0.2), between(0.2, 0.79))
    assert told.would_help == OTHER_DIRECTION
    assert replace(told, correlation=between(0.5, 0.79)).would_help == BOTH
    assert replace(told, without_noise=between(0.79, 0.81)).would_help == NOT_TOLD
    assert replace(told, correlation=between(0.8, 0.9), without_noise=None).would_help == NOT_TOLD
    assert replace(told, correlation=between(math.nan, math.nan)).would_help == OTHER_DIRECTION
