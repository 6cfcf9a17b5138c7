"""A mixture's datasets apart: the overall figures are their means, weighted by prompts."""

import io
import json
import math

import pytest
import torch

from nonpareil.console import PlainConsole
from nonpareil.evaluation import Evaluation, best_of_n_report, evaluate_groups
from nonpareil.evaluation.by_source import metrics_table, source_table
from nonpareil.evaluation.report import write_report
from nonpareil.records import GroupNumbers

NAMES = ["algebra"] * 11 + ["<b>poems</b>"] * 23 + ["unscored"] * 2


def named(groups, names):
    for group, name in zip(groups, names, strict=True):
        group.columns = {"dataset_source": name}


@pytest.fixture
def sides(draw):
    """Rewards 0 and 1, easier in one dataset; some failed, and one dataset has none at all."""
    chances = torch.tensor([0.8] * 11 + [0.3] * 25, dtype=torch.float64)
    reference = torch.stack([1 - chances, chances], 1)
    rewards = torch.tensor([0.0, 1.0]).expand(36, 2)
    policy = torch.softmax(reference.log() + rewards, dim=-1)
    policy, reference = draw(policy, rewards, 4, 0).groups, draw(reference, rewards, 8, 1).groups
    for group in (*policy[34:], policy[3], reference[20]):
        group.rewards = [None] * len(group)
    policy[5].rewards[0] = None
    named(policy, NAMES)
    named(reference, NAMES)
    return policy, reference


def evaluated(sides):
    kl = torch.rand(36, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return evaluate_groups(*sides, policy_kl=kl, policy_log_ratio=kl, n=(2,)), kl


def mean_of(intervals):
    known = [each for each in intervals if each is not None]
    total = sum(each.num_prompts for each in known)
    return sum(each.estimate * each.num_prompts for each in known) / total, total


def test_the_overall_figures_are_the_means_over_prompts_of_the_sources(sides):
    found, kl = evaluated(sides)
    assert [one.source for one in found.by_source] == sorted(set(NAMES))
    assert sum(one.num_prompts for one in found.by_source) == found.num_prompts
    for field, overall in (
        ("win_rate", found.comparison.win_rate),
        ("policy_mean", found.comparison.policy_mean),
        ("reference_mean", found.comparison.reference_mean),
        ("kl", found.kl),
    ):
        mean, total = mean_of([getattr(one, field) for one in found.by_source])
        assert total == overall.num_prompts
        assert mean == pytest.approx(overall.estimate, abs=1e-12), field
    poems, algebra, unscored = found.by_source
    assert (algebra.num_prompts, algebra.win_rate.num_prompts, poems.win_rate.num_prompts) == (11, 10, 22)
    assert algebra.kl.estimate == pytest.approx(kl[:11].mean().item())
    assert algebra.reference_mean.low < algebra.reference_mean.estimate < algebra.reference_mean.high
    assert unscored.win_rate is unscored.policy_mean is unscored.reference_mean is None, "not 0"
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))).by_source == found.by_source
    earlier = {name: value for name, value in found.to_dict().items() if name != "by_source"}
    assert Evaluation.from_dict(earlier).by_source == ()


def test_the_order_of_groups_changes_nothing(sides):
    found, kl = evaluated(sides)
    turned = evaluate_groups(
        sides[0][::-1], sides[1], policy_kl=kl.flip(0), policy_log_ratio=kl.flip(0), n=(2,)
    )
    assert turned.by_source == found.by_source


@pytest.mark.parametrize("names", [["one"] * 36, [None, *NAMES[1:]], [3, *NAMES[1:]]])
def test_prompts_of_no_mixture_have_no_table(sides, names):
    for side in sides:
        named(side, names)
    assert evaluated(sides)[0].by_source == ()
    assert best_of_n_report(sides[1]).by_source == ()


def test_the_report_and_the_terminal_have_the_table(sides, tmp_path):
    found, _ = evaluated(sides)
    page = write_report(found, best_of_n_report(sides[1]), *sides, tmp_path, "A title", {}).read_text()
    assert page.count("<td>algebra</td>") == 2
    assert "<td>&lt;b&gt;poems&lt;/b&gt;</td>" in page
    assert "By dataset_source" in page

    text = io.StringIO()
    PlainConsole(file=text, width=160).print(metrics_table(found.by_source, zero_one=True))
    assert "success rate, policy" in text.getvalue()
    assert "fewer than 30 prompts are rough" in text.getvalue()
    unscored = next(line for line in text.getvalue().splitlines() if "unscored" in line)
    assert unscored.count("—") == 3
    many = [(f"s{place:03d}", str(place), "x") for place in range(30)]
    text = io.StringIO()
    PlainConsole(file=text, width=160).print(source_table(("a", "b", "c"), many, "report.json"))
    assert "The 20 largest of 30; report.json has all." in " ".join(text.getvalue().split())
    assert "s009" not in text.getvalue()
    assert "s010" in text.getvalue()


def test_a_curve_is_the_mean_of_its_sources_curves(sides):
    groups = sides[1]
    curve = best_of_n_report(groups, 4)
    last = curve.points[-1]
    for field, overall in (
        ("first", curve.points[0].reward),
        ("last", last.reward),
        ("win_rate", last.win_rate),
    ):
        mean, total = mean_of([getattr(one, field) for one in curve.by_source])
        assert (total, mean) == (curve.num_prompts_used, pytest.approx(overall.estimate, abs=1e-12)), field
    assert sum(one.num_prompts for one in curve.by_source) == curve.num_prompts_used == 35
    rewards = [[math.nan if r is None else r for r in group.rewards] for group in groups]
    shapes = torch.full((36, 8), 2.0).numpy(), torch.full((36,), 2.0).numpy()
    numbers = GroupNumbers(
        [g.prompt_id for g in groups], torch.tensor(rewards, dtype=torch.float64).numpy(), *shapes, NAMES
    )
    assert best_of_n_report(numbers, 4).by_source == curve.by_source
    whole = best_of_n_report(groups)  # of all draws, of which the last leaves none to compare with
    assert whole.points[-1].win_rate is None
    assert whole.source_headings()[2:] == ("pass@N, N = 1", "pass@N, N = 8", "win rate, N = 7")
    mean, _ = mean_of([one.win_rate for one in whole.by_source])
    assert mean == pytest.approx(whole.points[-2].win_rate.estimate, abs=1e-12)
