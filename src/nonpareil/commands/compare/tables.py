"""The comparison's tables: one content for the terminal, the page and the documentation."""

import math
from collections.abc import Mapping, Sequence

from nonpareil.commands.compare.over_seeds import OverSeeds
from nonpareil.commands.compare.pairs import Pair
from nonpareil.commands.compare.path_tables import path_tables
from nonpareil.commands.compare.results import ComparisonReport, MethodRow
from nonpareil.commands.compare.seeds import WORTH_MENDING
from nonpareil.commands.compare.text_table import TextTable
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.numbers import MISSING, bracket, number
from nonpareil.evaluation.rows import TARGETS, Column, summary_rows
from nonpareil.maths.bootstrap import Interval

_MIB = 1024 * 1024
_ROUNDING = 1e-6
_SHARED = (
    ", which share prompts and the reference's completions: a spread of training alone, that another sample of "
    "prompts would add to"
)
_NONE_SEEN = "no difference seen"


def tables(report: ComparisonReport) -> list[TextTable]:
    """Gain and cost; which is better; cost at equal gain; noise or direction; how near best-of-N; what it took."""
    pairs = [pairs_table(report)] if report.pairs else []
    paths = path_tables(report.equal_win_rate) if report.equal_win_rate else []
    seeds = [seeds_table(report)] if report.agreements else []
    return [_gain(report), *pairs, *paths, *seeds, _targets(report), _effort(report)]


def cell(metric: OverSeeds | None, digits: int = 3, unit: float = 1.0, at_most: float = math.inf) -> str:
    """`mean ± sd`, the mean alone with one seed, a dash for what cannot be computed.

    Seeds that have no part in them are told: `1.20 ± .10, ∞ in 1 of 3`.
    `unit` is what one of the numbers shown is worth. `at_most` is the largest value that could be told: where a
    seed has it, the mean is at least what is shown.
    """
    if metric is None:
        return MISSING
    gaps = [
        (number(math.inf), metric.infinite.count(math.inf)),
        (number(-math.inf), metric.infinite.count(-math.inf)),
        (MISSING, metric.missing),
    ]
    told = [f"{what} in {count} of {metric.seeds}" for what, count in gaps if count]
    if metric.values:
        told.insert(0, _mean_and_sd(metric, digits, unit, at_most))
    return ", ".join(told)


def _mean_and_sd(metric: OverSeeds, digits: int, unit: float, at_most: float) -> str:
    mean = _grouped(metric.mean / unit, digits)
    if max(metric.values) > at_most - _ROUNDING:
        return f">= {mean}"
    return mean if metric.sd is None else f"{mean} ± {_grouped(metric.sd / unit, digits)}"


def front(row: MethodRow) -> str:
    """Whether a method is on the Pareto front, or what dominates it."""
    return "yes" if not row.dominated_by else f"no: {', '.join(row.dominated_by)}"


def _gain(report: ComparisonReport) -> TextTable:
    columns = _columns(report, of_targets=False)
    rows = [[*_cells(row, columns), front(row)] for row in report.methods]
    rows.append(_baseline("reference", {"win_rate": 0.5, "kl": 0.0, **report.reference}, columns))
    for best in report.best_of_n:
        metrics = {
            "win_rate": best.win_rate.estimate if best.win_rate else None,
            "reward": best.reward.estimate,
            "kl": best.kl,
            "equivalent_n": float(best.n),
        }
        rows.append(_baseline(f"best-of-{best.n}", metrics, columns))
    note = (
        f"One sample per prompt against the reference on {report.num_prompts} held-out prompts, ties one half; "
        f"mean ± standard deviation over seeds{_SHARED}. KL efficiency: least KL that any policy needs for this "
        "win rate over the KL spent, at most 1 but for noise; worth best-of-: the N whose best-of-N of the "
        f"reference groups has this win rate, reported up to {report.largest_n}; both count ties. "
        "rho²: the KL efficiency of a small step in the policy's direction. Length: change from the reference. "
        "On the front: no other method is shown to win no less at no more KL, one of the two better, by the "
        "intervals below, nor the reference to win more than it at no KL. Best-of-N draws N samples per answer"
        f"{'; its success rate is pass@N' if report.zero_one else ''}."
    ) + _one_pool(report)
    header = ["method", *(column.label or "" for column in columns), "on the front"]
    brief = (0, *(place for place, column in enumerate(columns, 1) if column.brief), len(header) - 1)
    return TextTable("Gain and cost", note, header, rows, 1 + len(report.best_of_n), brief)


def _columns(report: ComparisonReport, *, of_targets: bool) -> list[Column]:
    """What the rows of an evaluation have to be tabulated; the gold reward's columns beside the trained one's."""
    evaluations = [run.evaluation for run in report.runs]
    # Means are called success rates only where they are that in all runs.
    described = next((each for each in evaluations if not each.comparison.zero_one), evaluations[0])
    rows = [row for row in summary_rows(described) if (row.section == TARGETS) == of_targets]
    columns = [column for row in rows for column in row.columns if column.label is not None]
    names = [column.name for column in columns]
    return sorted(columns, key=lambda column: names.index(column.name.removeprefix("gold_")))


def pairs_table(report: ComparisonReport) -> TextTable:
    """Every two methods on the same prompts: the difference's interval, and who it shows to be better."""
    labels = {"win_rate": "win rate", "gold_win_rate": "gold win rate", "kl": "KL, nats"}
    if not report.gold:
        del labels["gold_win_rate"]
    header = ["methods", *(text for label in labels.values() for text in (f"{label}: difference", "better"))]
    rows = [
        [f"{pair.first} - {pair.second}", *(text for name in labels for text in _difference(pair, name))]
        for pair in report.pairs
    ]
    few = few_prompts(report.num_prompts)
    note = (
        "The first less the second, of means over seeds, with 95% intervals over prompts, paired: both on the same "
        "prompts against the same completions of the reference. A method is named only where the interval excludes "
        "zero; of KL less is better. It holds for the policies that were trained: those of other seeds differ, as "
        "the spread above says."
    )
    brief = (0, 1, 2, len(header) - 2, len(header) - 1)  # without the gold reward
    return TextTable("Which is better", f"{note} {few}" if few else note, header, rows, brief=brief)


def _difference(pair: Pair, name: str) -> tuple[str, str]:
    interval = getattr(pair, name)
    if interval is None:
        return MISSING, MISSING
    return f"{number(interval.estimate)} {bracket(interval)}", pair.better(name) or _NONE_SEEN


def seeds_table(report: ComparisonReport) -> TextTable:
    """What each method's seeds have in common, and what would make more of it."""
    header = ["method", "correlation of two seeds", "noise", "rho²", "rho² without noise", "what would help"]
    rows = [
        [
            each.name,
            _with_bracket(each.correlation),
            number(each.noise, 2),
            _with_bracket(each.rho_squared),
            _with_bracket(each.without_noise),
            each.would_help,
        ]
        for each in report.agreements
    ]
    pooled = ", ".join(each.name for each in report.agreements if each.one_pool)
    note = (
        "rho²: squared correlation, within prompts, of the log-ratio with the reward's quantile on the "
        "reference's completions; the KL efficiency of a small step in the policy's direction. Two seeds' "
        "log-ratios correlate as far as they are not noise: rho² is about the correlation times rho² without "
        "noise, which any amount of data would reach by the same step, loss and credit. Named is what would "
        "raise rho² by a quarter or more: a factor whose 95% interval over prompts, for these seeds, lies below "
        f"{number(WORTH_MENDING, 1)}. What all seeds share, such as the training prompts, is not seen as noise."
    )
    if pooled:
        note += (
            f" One stored pool serves every seed of {pooled}: its noise is in what their seeds have in common, "
            "so that their correlation is too high, and rho² without noise too low."
        )
    return TextTable("Noise or direction", note, header, rows, brief=(0, 1, 4, 5))


def _with_bracket(interval: Interval | None) -> str:
    return MISSING if interval is None else f"{number(interval.estimate, 2)} {bracket(interval, 2)}"


def _targets(report: ComparisonReport) -> TextTable:
    columns = _columns(report, of_targets=True)
    note = (
        "Backward: KL(policy ‖ best-of-N), low by at most (N-1)/(M+1) nats for M reference completions per prompt. "
        "Forward: KL(best-of-N ‖ policy), unbiased where rewards do not tie."
    )
    rows = [_cells(row, columns) for row in report.methods]
    return TextTable(TARGETS, note, ["method", *(column.label or "" for column in columns)], rows)


def _effort(report: ComparisonReport) -> TextTable:
    columns = {
        "completions_drawn": "completions drawn",
        "tokens_trained": "tokens trained",
        "steps": "steps",
        "seconds": "seconds",
        "peak_memory_bytes": "peak memory, MiB",
    }
    note = (
        "The stored pool counts in full, completions and seconds, for every method that learns from it. Seconds: "
        "training steps with their drawing and scoring, without loading and evaluation (a command that does not "
        "report them: its whole process). Memory: of the accelerator, or else of the process."
    )
    units = {"peak_memory_bytes": _MIB}
    rows = [
        [row.name, *(cell(row.metrics[name], 0, units.get(name, 1)) for name in columns), str(len(row.seeds))]
        for row in report.methods
    ]
    return TextTable("What it took, per run", note, ["method", *columns.values(), "seeds"], rows)


def _one_pool(report: ComparisonReport) -> str:
    """What the spread over seeds leaves out, where methods with several seeds share one pool."""
    stored = {run.name for run in report.runs if run.stored}
    names = [row.name for row in report.methods if row.name in stored and len(row.seeds) > 1]
    if not names:
        return ""
    return (
        f" One stored pool serves every seed of {', '.join(names)}: their seeds change the order of the data, ties "
        "and what is drawn besides, never the pool, so that their standard deviations are too small."
    )


def _cells(row: MethodRow, columns: Sequence[Column]) -> list[str]:
    return [row.name, *(cell(row.metrics[c.name], c.digits, at_most=c.at_most) for c in columns)]


def _baseline(name: str, metrics: Mapping[str, float | None], columns: Sequence[Column]) -> list[str]:
    return [name, *(number(metrics.get(c.name), c.digits) for c in columns), ""]


def _grouped(value: float, digits: int) -> str:
    return f"{value:,.0f}" if digits == 0 else number(value, digits)
