"""The quantile of an answer among the policy's answers to its prompt, told by stored groups: worked by hand."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from nonpareil.errors import ConfigError
from nonpareil.serving.calibration import Calibration
from nonpareil.serving.stopping import Goal

ROOT = Path(__file__).resolve().parents[2]


def of_one_law(*values: float) -> Calibration:
    """Prompts that are alike: their groups hold the same values in other orders."""
    return Calibration(np.array(list(itertools.permutations(values)) * 2, dtype=float))


def test_of_prompts_that_are_alike_it_is_the_quantile_whatever_else_was_drawn():
    calibration = of_one_law(1, 2, 3, 4)
    for others in ([], [4.0], [1.0, 1.0, 2.0], [9.0] * 7):
        assert [calibration.quantile(x, others) for x in (1, 2, 3, 4)] == [0.125, 0.375, 0.625, 0.875]
        assert [calibration.quantile(x, others) for x in (0.5, 2.5, 5)] == [0, 0.5, 1]
    # Ties share one half: a success of one in four has 7 eighths, a failure 3.
    of_successes = of_one_law(0, 0, 0, 1)
    assert of_successes.quantiles([0.0, None, 1.0]) == [0.375, None, 0.875]
    assert Calibration(np.full((3, 4), 7.0)).quantile(7.0, [7.0, 7.0]) == 0.5


def test_a_single_answers_quantile_is_even_over_prompts_like_those_of_the_groups():
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(40, 6)) * rng.gamma(2, size=(40, 1)) + 3 * rng.normal(size=(40, 1))
    calibration = Calibration(groups)
    for count in range(6):
        found = sorted(
            calibration.quantile(row[i], [row[(i + j) % 6] for j in range(1, count + 1)])
            for row in groups
            for i in range(6)
        )
        assert found == pytest.approx([(i + 0.5) / 240 for i in range(240)])
    fresh = rng.normal(size=(4000, 6)) * rng.gamma(2, size=(4000, 1)) + 3 * rng.normal(size=(4000, 1))
    good = np.mean([calibration.quantile(row[0], row[1:].tolist()) >= 0.8 for row in fresh])
    assert good == pytest.approx(0.2, abs=0.04)


def test_of_prompts_that_differ_the_other_answers_say_what_is_high_here():
    rng = np.random.default_rng(1)
    calibration = Calibration(rng.normal(size=(300, 8)) + 10 * rng.normal(size=(300, 1)))
    others = (rng.normal(size=7) + 20).tolist()
    # One standard deviation above a prompt's mean, far above and far below all others' mean.
    within = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    here = 21 - 20 + np.mean(others)
    assert calibration.quantile(here, others) == pytest.approx(within, abs=0.05)
    assert calibration.quantile(here - 40, [x - 40 for x in others]) == pytest.approx(within, abs=0.05)
    # A higher reward never has a lower quantile, whichever others it is held against.
    quantiles = calibration.quantiles(values := sorted(rng.normal(size=12).tolist()))
    assert quantiles == sorted(quantiles)
    assert calibration.most == 7
    assert len(values) > calibration.most + 1


def test_nulls_are_no_answers():
    groups = np.array([[1.0, 2, np.nan, 4], [3, 1, 2, 7], [np.nan, np.nan, 5, 1]])
    calibration = Calibration(groups)
    assert (len(calibration), calibration.most) == (3, 2)
    assert calibration.quantiles([2.0, None, 5.0, None]) == [
        *(calibration.quantile(2.0, [5.0]), None, calibration.quantile(5.0, [2.0]), None)
    ]
    alone = [4.0, 3.5, 4.5]  # of pairs, the group of two rewards has none against two others
    assert calibration.quantile(6.0, alone) == calibration.quantile(6.0, alone[:2])
    with pytest.raises(ConfigError, match="1 of 2 groups have two rewards"):
        Calibration(np.array([[1.0, 2], [np.nan, 3]]))


def test_ranks_of_the_draws_so_far_cannot_tell_whether_the_best_is_good():
    """Why groups are needed: in whatever order the draws come, their best is as good."""
    values = (1, 2, 4, 8, 16)
    by_order: dict[tuple[int, ...], list[int]] = {}
    for drawn in itertools.permutations(values, 3):
        by_order.setdefault(tuple(sorted(range(3), key=drawn.__getitem__)), []).append(max(drawn))
    assert len(by_order) == 6
    assert len({tuple(sorted(bests)) for bests in by_order.values()}) == 1


def test_the_replay_of_stored_groups_draws_as_the_formula_says():
    rewards = np.array(list(itertools.permutations((1, 2, 3, 4, 5))), dtype=float)
    spec = importlib.util.spec_from_file_location("stop_early", ROOT / "benchmarks" / "stop_early.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    replayed = script.replayed
    draws, wins, value = replayed(rewards, 1, 2, 2, lambda _: True)
    assert draws == 2
    assert value == pytest.approx(4, abs=0.15)  # the best of two of 1 .. 5, without replacement
    assert wins == pytest.approx(2 / 3, abs=0.05)
    calibration = Calibration(rewards)
    draws, *_ = replayed(rewards, 1, 4, 1, lambda seen: Goal(0.6, calibration).reached(seen) > 0)
    assert draws == pytest.approx(2, abs=0.2)  # until one of two out of five comes
