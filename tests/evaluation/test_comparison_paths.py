"""Methods at equal win rate: two paths each, paired by prompt, over seeds."""

import math

import pytest
import torch

from nonpareil.commands.compare.equal_win_rate import RunPoints, equal_win_rates
from nonpareil.commands.compare.path_tables import path_tables
from nonpareil.evaluation.by_prompt import ByPrompt
from nonpareil.maths.best_of_n import exponential_tilt, least_kl

PROMPTS = [f"p{place}" for place in range(40)]
REFERENCE = {prompt: torch.arange(16).double() for prompt in reversed(PROMPTS)}
STRENGTHS = (0.5, 1.0, 1.4, 2.0)


def tilted(c: float, cost: float = 1.0, prompts: list[str] = PROMPTS) -> ByPrompt:
    """A policy at `cost` times the least KL, prompts differing in a way that all policies share."""
    rate, kl = (float(each) for each in exponential_tilt(torch.tensor([c], dtype=torch.float64)))
    offsets = [0.02 * math.sin(int(prompt[1:])) for prompt in prompts]
    mean = sum(0.02 * math.sin(place) for place in range(40)) / 40
    return ByPrompt(
        tuple(prompts),
        tuple(rate + offset - mean for offset in offsets),
        tuple(cost * kl * (1 + 5 * (offset - mean)) for offset in offsets),
        None,
    )


def run(
    name: str, c: float = 4.0, cost: float = 1.0, checkpoints: int = 2, strengths: bool = True
) -> RunPoints:
    shares = [(place + 1) / checkpoints for place in range(checkpoints)]
    way = [(float(place), tilted(c * share, cost)) for place, share in enumerate(shares, 1)]
    between = [(each, tilted(c * each, cost)) for each in STRENGTHS]
    return RunPoints(name, tuple(way), tuple(between) if strengths else ())


def test_each_path_pays_what_its_curve_says_and_is_paired() -> None:
    found = equal_win_rates([run("best"), run("costly", cost=2.0, c=3.5)], REFERENCE, [0.6, 0.7, 0.95])
    assert found is not None
    assert found.num_prompts == 40
    least = [float(least_kl(torch.tensor([rate]))[0]) for rate in (0.6, 0.7)]
    assert found.least_kl[:2] == pytest.approx(least, rel=1e-4)
    paths = {(each.method, each.path): each for each in found.paths}
    assert len(paths) == 4
    for (method, _), each in paths.items():
        for at, true in zip(each.at, least, strict=False):
            assert at.kl is not None and at.kl_efficiency is not None  # noqa: PT018
            assert at.kl.estimate == pytest.approx(true * (2 if method == "costly" else 1), rel=0.02)
            assert at.kl_efficiency.estimate == pytest.approx(0.5 if method == "costly" else 1, rel=0.02)
        assert each.at[2].kl is None
    assert paths["best", "interpolation"].at[1].position is not None
    assert paths["best", "interpolation"].highest == pytest.approx(0.877, abs=0.01)
    assert {(each.path, each.win_rate, each.better) for each in found.differences} == {
        (path, rate, "best") for path in ("checkpoints", "interpolation") for rate in (0.6, 0.7)
    }
    for each in found.differences:
        assert each.kl.estimate == pytest.approx(-least[(0.6, 0.7).index(each.win_rate)], rel=0.04)


def test_seeds_points_and_prompts_that_are_missing_are_told() -> None:
    runs = [run("two"), run("two", c=1.8), run("one", checkpoints=1, strengths=False)]
    short = tuple((place, tilted(c, prompts=PROMPTS[5:])) for place, c in ((1.0, 2.0), (2.0, 4.0)))
    found = equal_win_rates([*runs, RunPoints("short", short, ())], REFERENCE, [0.6, 0.7])
    assert found is not None
    assert found.num_prompts == 35
    kl, differences = path_tables(found)
    cells = {(row[0], row[1]): row for row in kl.rows}
    assert cells["one", "checkpoints"][3:] == ["one point only", "one point only", "—", "—"]
    assert cells["two", "checkpoints"][4] == "not reached by 1 of 2 seeds"
    assert "±" in cells["two", "checkpoints"][3]
    assert cells["best possible", ""][3] == ".061"
    assert [row[0] for row in differences.rows] == ["two - short"]
    assert kl.brief == (0, 1, 2, 3, 4)


def test_without_a_way_there_is_nothing_to_tell() -> None:
    assert equal_win_rates([run("a", checkpoints=1, strengths=False)], REFERENCE, [0.6]) is None
