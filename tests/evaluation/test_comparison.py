import json
import math
import re
from dataclasses import replace

import pytest
import torch

from nonpareil.commands.compare.over_seeds import spread_of
from nonpareil.commands.compare.pairs import pairs_of
from nonpareil.commands.compare.plots import gold_figure, pareto_figure
from nonpareil.commands.compare.protocol import other_settings, refuse_mixed
from nonpareil.commands.compare.report import pareto_sentence, write_comparison
from nonpareil.commands.compare.results import (
    Checkpoint,
    Cost,
    RunRecord,
    compare_runs,
    metrics_of,
)
from nonpareil.commands.compare.stored_evaluations import read_evaluation
from nonpareil.commands.compare.tables import cell, pairs_table, tables
from nonpareil.errors import DataError
from nonpareil.evaluation.by_prompt import ByPrompt
from nonpareil.evaluation.curve import CurvePoint
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.files import from_jsonable, jsonable
from nonpareil.maths.best_of_n import kl_upper_bound, optimal_win_rate
from nonpareil.maths.bootstrap import bootstrap_interval

FRONTIER = [{"kl": kl / 10, "win_rate": optimal_win_rate(kl / 10)} for kl in range(40)]
PROTOCOL = {"prompts": {"sha256": "ab", "count": 4}, "sampling": {"temperature": 1.0}}
SPENT = Cost(completions_drawn=1000, tokens_trained=5000, steps=10, seconds=60.0, peak_memory_bytes=2**30)


def interval(estimate):
    if estimate is None:
        return None
    bounds = {"low": None, "high": None, "standard_error": None}
    return {"estimate": estimate, **bounds, "num_prompts": 8, "num_dropped": 0}


OFFSETS = (-0.09, -0.05, -0.03, -0.01, 0.01, 0.03, 0.05, 0.09)


def by_prompt(win, kl, gold, offsets=OFFSETS):
    """Prompts differ, and all policies alike: paired differences do not vary."""
    return {
        "prompt_ids": [f"p{place}" for place in range(len(offsets))],
        "win_rate": [win + offset for offset in offsets],
        "kl": [kl + offset for offset in offsets],
        "unseen_win_rate": None if gold is None else [gold - offset for offset in offsets],
    }


def evaluation(win, kl, *, gold=None, length=22.0, efficiency=0.5):
    """An evaluation as `report.json` has it."""

    def compared(rate, name):
        means = {"policy_mean": interval(rate * 2), "reference_mean": interval(1.0)}
        outcome = dict.fromkeys(("difference", "wins", "ties", "losses"), interval(0.25))
        counts = {"num_prompts": 8, "policy_failed": 0, "reference_failed": 0, "zero_one": False}
        rates = {"win_rate": interval(rate), "frontier": FRONTIER, "pass_at": []}
        return {"reward": name, **means, **outcome, **counts, **rates}

    def completions(tokens):
        shares = {"stopped_ratio": interval(1.0), "clipped_ratio": interval(0.0)}
        return {"num_completions": 4, "mean_length": interval(tokens), **shares, "distinct": {"1": None}}

    return {
        "num_prompts": 8,
        "by_prompt": by_prompt(win, kl, gold),
        "comparison": compared(win, "rewards"),
        "unseen": None if gold is None else compared(gold, "judge"),
        "kl": interval(kl),
        "kl_estimator": "exact",
        "log_ratio": interval(kl),
        "log_ratio_estimator": "k1",
        "kl_efficiency": interval(efficiency),
        "rho_squared": interval(0.3),
        "equivalent_n": interval(min(win / (1 - win), 15)),
        "largest_n": 15,
        "rewards_tie": False,
        "best_of_n": [{"n": n, "kl": kl_upper_bound(n), "win_rate": n / (n + 1)} for n in (2, 4, 8)],
        "targets": [
            {
                "n": n,
                "backward_kl": interval(0.1 * n),
                "backward_kl_bias": 0.1,
                "forward_kl": interval(0.2 * n if n < 8 else None),
                "win_rate_ceiling": n / (n + 1),
                "kl_upper_bound": kl_upper_bound(n),
            }
            for n in (2, 8)
        ],
        "policy": completions(length),
        "reference": completions(20.0),
        "length_strata": [{"policy_is": "equal", "share": interval(1.0), "win_rate": None}],
        "dtype": "float32",
    }


def evaluated(*point, **further):
    return Evaluation.from_dict(evaluation(*point, **further))


def run(name, seed, win, kl, *, path=(), **further):
    return RunRecord(
        name=name,
        seed=seed,
        evaluation=evaluated(win, kl, **further),
        checkpoints=tuple(Checkpoint(step, evaluated(*point, **further)) for step, point in path),
        spent=SPENT,
        protocol=PROTOCOL,
        folder=f"runs/{name}/seed-{seed}",
    )


def with_metric(record, **metrics):
    """A run whose evaluation has other metrics, as JSON has them."""
    content = {**record.evaluation.to_dict(), **metrics}
    return replace(record, evaluation=Evaluation.from_dict(content))


CURVE = from_jsonable(
    tuple[CurvePoint, ...],
    [
        {
            "n": n,
            "reward": interval(1.0 + n / 10),
            "win_rate": interval(n / (n + 1)) if n < 8 else None,
            "win_rate_ceiling": n / (n + 1),
            "kl_upper_bound": kl_upper_bound(n),
            "tokens_per_prompt": 20.0 * n,
        }
        for n in range(1, 9)
    ],
)


# --- Pairs and dominance


def paired(one, other, seeds=1):
    """The pair of two methods, each of a list of (win rate, KL) a prompt."""

    def runs(points):
        ids = tuple(f"p{place}" for place in range(len(points)))
        return [ByPrompt(ids, tuple(win for win, _ in points), tuple(kl for _, kl in points), None)] * seeds

    (pair,) = pairs_of({"a": runs(one), "b": runs(other)})
    return pair


def test_a_difference_is_of_means_over_seeds_prompt_by_prompt():
    """Prompts far apart and differences close together: only pairing sees them, and the seeds come first."""
    hard, easy = 0.1, 0.9

    def run(gains):
        rates = tuple(base + gain for base, gain in zip([hard, easy] * 4, gains * 2, strict=True))
        return ByPrompt(tuple("abcdefgh"), rates, (1.0,) * 8, None)

    better = [run([0.02, 0.04, 0.03, 0.05]), run([0.04, 0.06, 0.03, 0.07])]
    (pair,) = pairs_of({"a": better, "b": [run([0.0] * 4)]})
    differences = torch.tensor([0.03, 0.05, 0.03, 0.06] * 2, dtype=torch.float64)
    expected = bootstrap_interval(differences)
    assert pair.win_rate.estimate == pytest.approx(0.0425)
    assert (pair.win_rate.low, pair.win_rate.high) == pytest.approx((expected.low, expected.high))
    assert pair.better("win_rate") == "a"
    assert (pair.kl.low, pair.kl.high, pair.better("kl")) == (0, 0, None)
    assert pair.gold_win_rate is None
    assert pair.dominating() == "a"


def test_a_method_is_named_only_where_the_interval_excludes_zero():
    level = [(0.6, 1.0)] * 8
    up_and_down = [(0.6 + gain, 1.0 - gain) for gain in (0.3, -0.2, 0.3, -0.2, 0.3, -0.2, 0.3, -0.2)]
    pair = paired(up_and_down, level)
    assert pair.win_rate.estimate == pytest.approx(0.05)  # higher, at a KL as much lower: by chance
    assert pair.win_rate.low < 0 < pair.win_rate.high
    assert (pair.better("win_rate"), pair.better("kl"), pair.dominating()) == (None, None, None)
    assert paired(level, [(0.5, 1.2)] * 8).better("kl") == "a"


@pytest.mark.parametrize(("prompts", "named"), [(2, None), (5, None), (6, "b"), (20, "b")])
def test_equal_differences_of_few_prompts_name_no_method(prompts, named):
    """As a sign test at 5 %, which needs six: 2 * .5^6 = .031, 2 * .5^5 = .062."""
    pair = paired([(0.5, 1.0)] * prompts, [(0.75, 1.0)] * prompts)
    assert pair.win_rate.estimate == pair.win_rate.low == -0.25
    assert pair.win_rate.high == pytest.approx(-0.25 * (2 * 0.025 ** (1 / prompts) - 1), abs=0.01)
    assert pair.better("win_rate") == named


def test_dominance_needs_both_figures_no_worse_and_one_better():
    points = {"low": (0.6, 0.2), "high": (0.9, 2.0), "worse": (0.55, 0.5), "same_kl": (0.8, 2.0)}
    report = compare_runs([run(name, 0, *point) for name, point in points.items()], CURVE)
    found = {row.name: row.dominated_by for row in report.methods}
    assert found == {"low": (), "high": (), "worse": ("low",), "same_kl": ("high",)}


def test_equal_methods_do_not_dominate_each_other():
    report = compare_runs([run("a", 0, 0.7, 1.0), run("b", 0, 0.7, 1.0)], CURVE)
    assert [row.dominated_by for row in report.methods] == [(), ()]
    (row,) = pairs_table(report).rows
    assert row == [
        "a - b",
        ".000 [.000, .000]",
        "no difference seen",
        ".000 [.000, .000]",
        "no difference seen",
    ]


def test_a_method_below_the_reference_is_not_on_the_front():
    """The reference wins one half at no KL; only where the interval does not tell is a method given the doubt."""
    points = {"above": (0.6, 1.0), "near": (0.49, 0.5), "below": (0.4, 0.2)}
    report = compare_runs([run(name, 0, *point) for name, point in points.items()], CURVE)
    found = {row.name: row.dominated_by for row in report.methods}
    assert found == {"above": (), "near": (), "below": ("the reference",)}
    front = [row[-1] for row in tables(report)[0].rows[:3]]
    assert front == ["yes", "yes", "no: the reference"]
    only = compare_runs([run("below", seed, 0.4, 0.2) for seed in (0, 1)], CURVE)
    assert pareto_sentence(only) == "On the Pareto front: none"


def test_a_method_without_a_figure_neither_dominates_nor_is_dominated():
    pair = paired([(None, 0.1)] * 8, [(0.7, 1.0)] * 8)
    assert (pair.win_rate, pair.better("win_rate"), pair.dominating()) == (None, None, None)
    assert pair.better("kl") == "a"


def test_prompts_that_a_run_could_not_score_are_left_out():
    pair = paired([(None, 1.0), *[(0.8, 1.0)] * 7], [(0.1, 1.0), *[(0.5, 1.0)] * 7])
    assert (pair.win_rate.num_prompts, pair.win_rate.num_dropped) == (7, 1)
    assert pair.win_rate.estimate == pytest.approx(0.3)


def test_the_table_of_pairs_says_who_is_better_in_what():
    runs = [run("m", 0, 0.7, 1.0, gold=0.5), run("other", 0, 0.6, 2.0, gold=0.6)]
    table = pairs_table(compare_runs(runs, CURVE))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert table.rows[0][0] == "m - other"
    assert table.rows[0][2::2] == ["m", "other", "m"]
    assert cells["win rate: difference"].startswith(".100 [")
    assert cells["gold win rate: difference"].startswith("-.100 [")
    assert cells["KL, nats: difference"].startswith("-1.000 [")
    assert "Intervals over 8 prompts are rough" in table.note


# --- Aggregation


def test_means_and_sample_deviations_are_over_seeds():
    report = compare_runs([run("m", 0, 0.6, 1.0), run("m", 1, 0.8, 3.0)], CURVE)
    (row,) = report.methods
    assert row.seeds == (0, 1)
    assert row.metrics["win_rate"].mean == pytest.approx(0.7)
    assert row.metrics["win_rate"].sd == pytest.approx(math.sqrt(0.02))  # (.1^2 + .1^2) / (2 - 1)
    assert row.metrics["kl"].values == (1.0, 3.0)
    assert cell(row.metrics["win_rate"]) == ".700 ± .141"


def test_one_seed_has_no_deviation_and_a_missing_figure_is_a_dash():
    report = compare_runs([run("m", 0, 0.6, 1.0)], CURVE)
    metrics = report.methods[0].metrics
    assert cell(metrics["win_rate"]) == ".600"
    assert metrics["forward_kl_8"] is None
    assert cell(metrics["forward_kl_8"]) == "—"
    assert cell(metrics["forward_kl_2"]) == ".400"


def test_a_spread_over_seeds_that_share_a_pool_is_said_to_be_too_small():
    fresh = [run("fresh", seed, 0.6, 1.0) for seed in (0, 1)]
    stored = [replace(run("stored", seed, 0.6, 1.0), stored=True) for seed in (0, 1)]
    assert "pool" not in tables(compare_runs(fresh, CURVE))[0].note
    assert "pool" not in tables(compare_runs(stored[:1], CURVE))[0].note
    assert (
        "One stored pool serves every seed of stored:" in tables(compare_runs(fresh + stored, CURVE))[0].note
    )


def test_length_drift_is_from_the_reference_in_tokens_and_percent():
    metrics = metrics_of(evaluated(0.6, 1.0, length=23.0), SPENT)
    assert metrics["length_drift"] == pytest.approx(3.0)
    assert metrics["length_drift_percent"] == pytest.approx(15.0)


def test_a_figure_missing_in_one_seed_is_averaged_over_the_others():
    runs = [run("m", 0, 0.6, 1.0, efficiency=None), run("m", 1, 0.6, 1.0, efficiency=0.4)]
    found = compare_runs(runs, CURVE).methods[0].metrics["kl_efficiency"]
    assert (found.mean, found.sd) == (0.4, None)


def test_infinities_are_told_beside_the_mean_of_the_others():
    values = [interval(0.4), interval(0.6), interval("Infinity"), None]  # as JSON has it
    runs = [with_metric(run("m", seed, 0.6, 1.0), kl_efficiency=value) for seed, value in enumerate(values)]
    report = compare_runs(runs, CURVE)
    found = report.methods[0].metrics["kl_efficiency"]
    assert (found.mean, found.infinite, found.missing, found.seeds) == (0.5, (math.inf,), 1, 4)
    assert cell(found, 2) == ".50 ± .14, ∞ in 1 of 4, — in 1 of 4"
    assert report.to_dict()["methods"][0]["figures"]["kl_efficiency"]["infinite"] == ["Infinity"]


def test_a_figure_that_is_infinite_in_every_seed_is_no_dash():
    assert cell(spread_of([math.inf] * 3)) == "∞ in 3 of 3"
    assert cell(spread_of([-math.inf, math.inf, math.nan])) == "∞ in 1 of 3, -∞ in 1 of 3, — in 1 of 3"
    assert cell(spread_of([0.5, -math.inf])) == ".500, -∞ in 1 of 2"


def test_infinities_of_an_evaluation_outlive_its_json():
    assert jsonable({"a": (1.5, math.inf, -math.inf, math.nan)}, keep_infinities=True) == {
        "a": [1.5, "Infinity", "-Infinity", None]
    }


def test_a_method_of_infinite_kl_is_told_and_not_drawn():
    runs = [run("m", 0, 0.6, 1.0), with_metric(run("off", 0, 0.6, 1.0), kl=interval("Infinity"))]
    report = compare_runs(runs, CURVE)
    assert len(pareto_figure(report).axes[0].containers) == 1
    gain = tables(report)[0]
    assert gain.rows[1][gain.header.index("KL, nats")] == "∞ in 1 of 1"


def test_the_spread_says_what_the_seeds_share():
    note = tables(compare_runs([run("m", 0, 0.6, 1.0)], CURVE))[0].note
    assert (
        "over seeds, which share prompts and the reference's completions: a spread of training alone" in note
    )


def test_an_n_at_the_end_of_what_the_groups_show_is_told_as_such():
    """Two seeds, one of them worth 15 draws or more: their mean is a lower bound."""
    report = compare_runs([run("m", 0, 0.99, 2.0), run("m", 1, 0.9, 2.0), run("low", 0, 0.6, 1.0)], CURVE)
    gain = tables(report)[0]
    worth = [row[gain.header.index("worth best-of-")] for row in gain.rows]
    assert worth[:2] == [">= 12.00", "1.50"]
    assert "reported up to 15" in gain.note


def test_best_of_n_and_the_frontier_are_those_of_the_shared_groups():
    """Rewards 0 and 1 at a success rate of one half: nothing has a win rate above .75."""
    told = evaluation(0.6, 1.0, gold=0.7)
    tied = [{"kl": 0.0, "win_rate": 0.5}, {"kl": 0.69, "win_rate": 0.75}]
    told["comparison"] |= {"frontier": tied, "zero_one": True}
    told["targets"][0]["kl_upper_bound"] = 0.131
    told["best_of_n"] = [{"n": 2, "kl": 0.131, "win_rate": 0.625}]
    report = compare_runs([with_metric(run("m", 0, 0.6, 1.0), **told)], CURVE)
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
    old = evaluation(0.6, 1.0)
    del old["comparison"]["frontier"]
    with pytest.raises(DataError, match=r"m, seed 3 was evaluated by an earlier version.*--overwrite"):
        read_evaluation("m, seed 3", old)


def test_evaluations_without_the_figures_of_each_prompt_are_named():
    old = evaluation(0.6, 1.0)
    del old["by_prompt"]
    with pytest.raises(
        DataError, match=r"m, seed 3 was evaluated by an earlier version.*each prompt.*--overwrite"
    ):
        read_evaluation("m, seed 3", old)


def test_an_evaluation_that_lacks_another_metric_is_named_with_it():
    old = evaluation(0.6, 1.0)
    del old["policy"]["mean_length"]
    with pytest.raises(DataError, match=r"m, seed 3 .*evaluation.policy.mean_length is missing.*--overwrite"):
        read_evaluation("m, seed 3", old)


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
    assert pareto_sentence(report) == "On the Pareto front: best (.70 at 1.00 nats)"


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
    assert other_settings({"a": {"b": 1}}, {"a": {}, "c": 2}) == [
        "a.b: None instead of 1",
        "c: 2 instead of None",
    ]


def test_a_setting_that_an_earlier_version_had_not_is_at_its_default_there():
    """So that a new version goes on with a folder of an old one, unless something else is now asked of it."""
    before = {"settings": {"prompt_column": "question"}}
    now = {"settings": {"prompt_column": "question", "dataset_streaming": False, "load_in_4bit": True}}
    assert other_settings(now, before) == ["settings.load_in_4bit: None instead of True"]
    assert other_settings(before, now) == ["settings.load_in_4bit: True instead of None"]
    assert other_settings({"prompt_column": "prompt"}, {"prompt_column": "question"})


def test_protocols_alike_after_json_are_alike():
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
    assert (x[0], y[0]) == (row.metrics["kl"].mean, row.metrics["win_rate"].mean)


def test_the_gold_picture_shows_both_rewards(ten_methods):
    left, right = gold_figure(ten_methods).axes
    rates = [axes.containers[9].lines[0].get_data()[1][0] for axes in (left, right)]
    metrics = ten_methods.methods[9].metrics
    assert rates == [metrics["win_rate"].mean, metrics["gold_win_rate"].mean]


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
