import json
import math
import re
from dataclasses import replace

import pytest

from nonpareil.errors import DataError
from nonpareil.evaluation.comparison import (
    Checkpoint,
    RunRecord,
    Spent,
    compare_runs,
    differing,
    dominators,
    figures_of,
    refuse_mixed,
)
from nonpareil.evaluation.comparison_plots import gold_figure, pareto_figure
from nonpareil.evaluation.comparison_report import headline, write_comparison
from nonpareil.evaluation.comparison_tables import cell, tables
from nonpareil.maths.best_of_n import kl_upper_bound, optimal_win_rate

FRONTIER = [{"kl": kl / 10, "win_rate": optimal_win_rate(kl / 10)} for kl in range(40)]
PROTOCOL = {"prompts": {"sha256": "ab", "count": 4}, "sampling": {"temperature": 1.0}}
SPENT = Spent(completions_drawn=1000, tokens_trained=5000, steps=10, seconds=60.0, peak_memory_bytes=2**30)


def interval(estimate):
    return None if estimate is None else {"estimate": estimate, "low": None, "high": None}


def evaluation(win, kl, *, gold=None, length=22.0, efficiency=0.5):
    """The part of `Evaluation.to_dict` that a comparison reads."""

    def compared(rate, name):
        means = {"policy_mean": interval(rate * 2), "reference_mean": interval(1.0)}
        return {"reward": name, "win_rate": interval(rate), **means, "frontier": FRONTIER, "zero_one": False}

    return {
        "num_prompts": 4,
        "comparison": compared(win, "rewards"),
        "unseen": None if gold is None else compared(gold, "judge"),
        "kl": interval(kl),
        "kl_efficiency": interval(efficiency),
        "equivalent_n": interval(min(win / (1 - win), 15)),
        "largest_n": 15,
        "best_of_n": [{"n": n, "kl": kl_upper_bound(n), "win_rate": n / (n + 1)} for n in (2, 4, 8)],
        "targets": [
            {
                "n": n,
                "backward_kl": interval(0.1 * n),
                "forward_kl": interval(0.2 * n if n < 8 else None),
                "kl_upper_bound": kl_upper_bound(n),
            }
            for n in (2, 8)
        ],
        "policy": {"mean_length": interval(length)},
        "reference": {"mean_length": interval(20.0)},
    }


def run(name, seed, win, kl, *, path=(), **further):
    return RunRecord(
        name=name,
        seed=seed,
        evaluation=evaluation(win, kl, **further),
        checkpoints=tuple(Checkpoint(step, evaluation(*point, **further)) for step, point in path),
        spent=SPENT,
        protocol=PROTOCOL,
        folder=f"runs/{name}/seed-{seed}",
    )


CURVE = {
    "points": [
        {"n": n, "reward": interval(1.0 + n / 10), "win_rate": interval(n / (n + 1)) if n < 8 else None}
        for n in range(1, 9)
    ]
}


# --- Dominance


def test_dominance_needs_both_coordinates_no_worse_and_one_better():
    points = {"low": (0.2, 0.6), "high": (2.0, 0.9), "worse": (0.5, 0.55), "same_kl": (2.0, 0.8)}
    assert dominators(points) == {"low": (), "high": (), "worse": ("low",), "same_kl": ("high",)}


def test_equal_points_do_not_dominate_each_other():
    assert dominators({"a": (1.0, 0.7), "b": (1.0, 0.7)}) == {"a": (), "b": ()}


def test_a_point_without_a_figure_neither_dominates_nor_is_dominated():
    assert dominators({"a": (math.nan, 0.99), "b": (1.0, 0.7)}) == {"a": (), "b": ()}


# --- Aggregation


def test_means_and_sample_deviations_are_over_seeds():
    report = compare_runs([run("m", 0, 0.6, 1.0), run("m", 1, 0.8, 3.0)], CURVE)
    (row,) = report.methods
    assert row.seeds == (0, 1)
    assert row.figures["win_rate"].mean == pytest.approx(0.7)
    assert row.figures["win_rate"].sd == pytest.approx(math.sqrt(0.02))  # (.1^2 + .1^2) / (2 - 1)
    assert row.figures["kl"].values == (1.0, 3.0)
    assert cell(row.figures["win_rate"]) == ".700 ± .141"


def test_one_seed_has_no_deviation_and_a_missing_figure_is_a_dash():
    report = compare_runs([run("m", 0, 0.6, 1.0)], CURVE)
    figures = report.methods[0].figures
    assert cell(figures["win_rate"]) == ".600"
    assert figures["forward_kl_8"] is None
    assert cell(figures["forward_kl_8"]) == "—"
    assert cell(figures["forward_kl_2"]) == ".400"


def test_a_spread_over_seeds_that_share_a_pool_is_said_to_be_too_small():
    fresh = [run("fresh", seed, 0.6, 1.0) for seed in (0, 1)]
    stored = [replace(run("stored", seed, 0.6, 1.0), stored=True) for seed in (0, 1)]
    assert "pool" not in tables(compare_runs(fresh, CURVE))[0].note
    assert "pool" not in tables(compare_runs(stored[:1], CURVE))[0].note
    assert (
        "One stored pool serves every seed of stored:" in tables(compare_runs(fresh + stored, CURVE))[0].note
    )


def test_length_drift_is_from_the_reference_in_tokens_and_percent():
    figures = figures_of(evaluation(0.6, 1.0, length=23.0), SPENT)
    assert figures["length_drift"] == pytest.approx(3.0)
    assert figures["length_drift_percent"] == pytest.approx(15.0)


def test_a_figure_missing_in_one_seed_is_averaged_over_the_others():
    runs = [run("m", 0, 0.6, 1.0, efficiency=None), run("m", 1, 0.6, 1.0, efficiency=0.4)]
    statistic = compare_runs(runs, CURVE).methods[0].figures["kl_efficiency"]
    assert (statistic.mean, statistic.sd) == (0.4, None)


def test_an_n_at_the_end_of_what_the_groups_show_is_told_as_such():
    """Two seeds, one of them worth 15 draws or more: their mean is a lower bound."""
    report = compare_runs([run("m", 0, 0.99, 2.0), run("m", 1, 0.9, 2.0), run("low", 0, 0.6, 1.0)], CURVE)
    gain = tables(report)[0]
    worth = [row[gain.header.index("worth best-of-")] for row in gain.rows]
    assert worth[:2] == [">= 12.00", "1.50"]
    assert "told up to 15" in gain.note


def test_best_of_n_and_the_frontier_are_those_of_the_shared_groups():
    """Rewards 0 and 1 at a success rate of one half: nothing has a win rate above .75."""
    runs = [run("m", 0, 0.6, 1.0, gold=0.7)]
    told = runs[0].evaluation
    tied = [{"kl": 0.0, "win_rate": 0.5}, {"kl": 0.69, "win_rate": 0.75}]
    told["comparison"] |= {"frontier": tied, "zero_one": True}
    told["targets"][0]["kl_upper_bound"] = 0.131
    told["best_of_n"] = [{"n": 2, "kl": 0.131, "win_rate": 0.625}]
    report = compare_runs(runs, CURVE)
    gain = tables(report)[0]
    best = dict(zip(gain.header, gain.rows[-2], strict=True))
    assert (best["method"], best["KL, nats"]) == ("best-of-2", ".131")
    assert "success rate" in gain.header
    assert "its success rate is pass@N" in gain.note
    limit, points = pareto_figure(report).axes[0].get_lines()[:2]
    assert limit.get_ydata().max() == 0.75
    assert [*points.get_xdata(), *points.get_ydata()] == [0.131, 0.625]
    left, right = gold_figure(report).axes
    assert left.get_lines()[1].get_ydata().max() == 0.75  # behind it the best-of-N points
    assert right.get_lines()[0].get_ydata().max() > 0.9  # the gold reward's own


def test_evaluations_without_a_frontier_are_named():
    old = run("m", 3, 0.6, 1.0)
    del old.evaluation["comparison"]["frontier"]
    with pytest.raises(DataError, match=r"m, seed 3 was evaluated by an earlier version.*--overwrite"):
        compare_runs([run("m", 0, 0.6, 1.0), old], CURVE)


def test_checkpoints_are_averaged_by_their_place():
    path = [(5, (0.55, 0.1)), (10, (0.6, 0.3))]
    shorter = [(7, (0.65, 0.3))]
    report = compare_runs([run("m", 0, 0.7, 1.0, path=path), run("m", 1, 0.7, 1.0, path=shorter)], CURVE)
    first, second = report.methods[0].path
    assert (first.step, first.kl, first.win_rate) == pytest.approx((6, 0.2, 0.6))
    assert (second.step, second.kl, second.win_rate) == pytest.approx((10, 0.3, 0.6))
    assert first.gold_win_rate is None


def test_methods_keep_their_order_and_name_who_dominates_them():
    runs = [run("late", 0, 0.6, 2.0), run("best", 0, 0.7, 1.0), run("late", 1, 0.62, 2.1)]
    report = compare_runs(runs, CURVE)
    assert [row.name for row in report.methods] == ["late", "best"]
    assert [row.dominated_by for row in report.methods] == [("best",), ()]
    assert headline(report) == "On the Pareto front: best (.70 at 1.00 nats)"


def test_no_runs_or_one_run_twice_are_refused():
    with pytest.raises(DataError, match="no finished run"):
        compare_runs([], CURVE)
    with pytest.raises(DataError, match="m, seed 0"):
        compare_runs([run("m", 0, 0.6, 1.0)] * 2, CURVE)


# --- One protocol


def test_runs_of_another_protocol_are_refused_by_what_differs():
    other = replace(run("b", 0, 0.7, 1.0), protocol={**PROTOCOL, "sampling": {"temperature": 0.7}})
    with pytest.raises(
        DataError, match=r"'a, seed 0'.*\n.*b, seed 0: sampling.temperature: 0.7 instead of 1.0"
    ):
        compare_runs([run("a", 0, 0.6, 1.0), other], CURVE)


def test_a_setting_that_one_protocol_lacks_differs():
    assert differing({"a": {"b": 1}}, {"a": {}, "c": 2}) == ["a.b: None instead of 1", "c: 2 instead of None"]
    refuse_mixed({"x": PROTOCOL, "y": json.loads(json.dumps(PROTOCOL))})


# --- On disk


@pytest.fixture
def ten_methods():
    runs = []
    for index in range(10):
        for seed in range(3):
            win, kl = 0.55 + 0.03 * index + 0.004 * seed, 0.08 * (index + 1) ** 1.5 + 0.02 * seed
            path = [(s, (0.5 + (win - 0.5) * s / 12, kl * (s / 12) ** 2)) for s in (3, 6, 9)]
            runs.append(run(f"method_{index}", seed, win, kl, gold=0.5 + (win - 0.5) * 0.6, path=path))
    return compare_runs(runs, CURVE)


def test_the_report_is_one_page_of_tables_and_pictures(ten_methods, tmp_path):
    failures = [{"run": "dpo, seed 1", "reason": "<script>boom</script>"}]
    path = write_comparison(
        ten_methods, tmp_path, title="A <b>title</b>", context={"a": {"b": 1}}, failures=failures
    )
    page = path.read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 2
    for text in ("method_9", "dpo, seed 1", "best-of-8", "backward, N=2", "peak memory, MiB", "a.b"):
        assert text in page, text
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert len(content["methods"]) == 10
    assert content["methods"][0]["figures"]["seconds"]["mean"] == 60
    assert content["runs"][0]["protocol"] == PROTOCOL
    assert content["failures"] == failures
    for name in ("pareto.png", "gold.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_markdown_has_one_cell_a_column(ten_methods, tmp_path):
    write_comparison(ten_methods, tmp_path, title="t", context={})
    lines = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == sum(len(table.rows) + 2 for table in tables(ten_methods))
    gain = lines[: 10 + 2 + 3]
    assert {line.count("|") for line in gain} == {gain[0].count("|")}


def test_without_a_gold_reward_there_is_no_gold_picture(tmp_path):
    (tmp_path / "gold.png").write_bytes(b"old")
    report = compare_runs([run("m", 0, 0.6, 1.0)], CURVE)
    page = write_comparison(report, tmp_path, title="t", context={}).read_text()
    assert not (tmp_path / "gold.png").exists()
    assert "gold" not in page
    assert "gold" not in (tmp_path / "comparison.md").read_text()


def test_each_method_has_its_own_look_and_place_in_the_legend(ten_methods):
    axes = pareto_figure(ten_methods).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert [label for label in labels if label.startswith("method")] == [f"method_{i}" for i in range(10)]
    drawn = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), line.get_marker()) for line in drawn}
    assert len(looks) == 10
    x, y = drawn[3].get_data()
    row = ten_methods.methods[3]
    assert (x[0], y[0]) == (row.figures["kl"].mean, row.figures["win_rate"].mean)


def test_the_gold_picture_shows_both_rewards(ten_methods):
    left, right = gold_figure(ten_methods).axes
    rates = [axes.containers[9].lines[0].get_data()[1][0] for axes in (left, right)]
    figures = ten_methods.methods[9].figures
    assert rates == [figures["win_rate"].mean, figures["gold_win_rate"].mean]


def test_a_policy_worse_than_its_reference_and_a_kl_below_zero_are_drawn():
    runs = [run("bad", 0, 0.3, 0.5, gold=0.2), run("still", 0, 0.5, -1e-4, gold=0.5)]
    report = compare_runs(runs, CURVE)
    for figure in (pareto_figure(report), gold_figure(report)):
        assert figure.axes[0].get_ylim()[0] <= 0.3


def test_names_and_reasons_are_text_in_every_form_of_the_report(tmp_path):
    name = "_$x^$ \x1b[2J\u202e|</script><b>[/b]\n# all is well"
    report = compare_runs([run(name, 0, 0.6, 1.0, gold=0.6)], CURVE)
    told = [{"run": name, "reason": f"first\n{name}"}]
    path = write_comparison(
        report, tmp_path, title=name, context={name: name}, failures=told, over_budget=told
    )
    for file in (path, tmp_path / "comparison.md", tmp_path / "comparison.json"):
        assert all(line.isprintable() for line in file.read_text().split("\n")), file
    page, lines = path.read_text(), (tmp_path / "comparison.md").read_text().splitlines()
    assert "<b>[/b]" not in page
    assert "&lt;/script&gt;&lt;b&gt;[/b]" in page
    assert not [line for line in lines if line.startswith("# all is well")]
    assert [
        label for label in pareto_figure(report).axes[0].get_legend_handles_labels()[1] if "$x^$" in label
    ]
