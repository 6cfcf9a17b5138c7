"""The comparison's tables: one content for the terminal, the page and the documentation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nonpareil.commands.compare.over_seeds import OverSeeds
from nonpareil.commands.compare.pairs import Pair
from nonpareil.commands.compare.results import ComparisonReport, MethodRow
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.summary import MISSING, bracket, number
from nonpareil.markdown import plain

_MIB = 1024 * 1024
_ROUNDING = 1e-6
_SHARED = (
    ", which share prompts and the reference's completions: a spread of training alone, that another sample of "
    "prompts would add to"
)
_NONE_SEEN = "no difference seen"


@dataclass(frozen=True)
class Table:
    """A heading, a note below it, and cells of text; the first column is the method's name."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    num_baselines: int = 0
    """Of the last rows: what methods are held against."""

    def markdown(self) -> str:
        """As GitHub reads it, numbers to the right."""
        ruler = [":--"] + ["--:"] * (len(self.header) - 1)
        lines = [self.header, ruler, *(list(map(plain, row)) for row in self.rows)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@dataclass(frozen=True)
class _Column:
    label: str
    key: str
    digits: int = 3
    unit: float = 1.0
    """What one of the shown is worth."""


def tables(report: ComparisonReport) -> list[Table]:
    """What was gained and what it cost; which method is better; how near best-of-N each came; what it took."""
    pairs = [pairs_table(report)] if report.pairs else []
    return [_gain(report), *pairs, _targets(report), _effort(report)]


def cell(statistic: OverSeeds | None, digits: int = 3, unit: float = 1.0, at_most: float = math.inf) -> str:
    """`mean ± sd`, the mean alone with one seed, a dash for what cannot be computed.

    Seeds that have no part in them are told: `1.20 ± .10, ∞ in 1 of 3`.
    `at_most` is the largest value that could be told: where a seed has it, the mean is at least what is shown.
    """
    if statistic is None:
        return MISSING
    gaps = [
        (number(math.inf), statistic.infinite.count(math.inf)),
        (number(-math.inf), statistic.infinite.count(-math.inf)),
        (MISSING, statistic.missing),
    ]
    told = [f"{what} in {count} of {statistic.seeds}" for what, count in gaps if count]
    if statistic.values:
        told.insert(0, _spread(statistic, digits, unit, at_most))
    return ", ".join(told)


def _spread(statistic: OverSeeds, digits: int, unit: float, at_most: float) -> str:
    mean = _grouped(statistic.mean / unit, digits)
    if max(statistic.values) > at_most - _ROUNDING:
        return f">= {mean}"
    return mean if statistic.sd is None else f"{mean} ± {_grouped(statistic.sd / unit, digits)}"


def front(row: MethodRow) -> str:
    """Whether a method is on the Pareto front, or what dominates it."""
    return "yes" if not row.dominated_by else f"no: {', '.join(row.dominated_by)}"


def _gain(report: ComparisonReport) -> Table:
    columns = [
        _Column("win rate", "win_rate"),
        *([_Column("gold win rate", "gold_win_rate")] if report.gold else []),
        _Column("success rate" if report.zero_one else "reward", "reward"),
        _Column("KL, nats", "kl"),
        _Column("KL efficiency", "kl_efficiency", 2),
        _Column("worth best-of-", "equivalent_n", 2),
        _Column("length, tokens", "length_drift", 1),
        _Column("length, %", "length_drift_percent", 1),
    ]
    rows = [[*_cells(row, columns, report.largest_n), front(row)] for row in report.methods]
    rows.append(_baseline("reference", {"win_rate": 0.5, "kl": 0.0, **report.reference}, columns))
    for point in report.best_of_n:
        best = {
            "win_rate": point["win_rate"] and point["win_rate"]["estimate"],
            "reward": point["reward"]["estimate"],
            "kl": point["kl"],
            "equivalent_n": float(point["n"]),
        }
        rows.append(_baseline(f"best-of-{point['n']}", best, columns))
    note = (
        f"One sample a prompt against the reference on {report.num_prompts} held-out prompts, ties one half; "
        f"mean ± standard deviation over seeds{_SHARED}. KL efficiency: least KL that any policy needs for this "
        "win rate over the KL spent, at most 1 but for noise; worth best-of-: the N whose best-of-N of the "
        f"reference groups has this win rate, told up to {report.largest_n}; both count ties. Length: change from "
        "the reference. "
        "On the front: no other method is shown to win no less at no more KL, one of the two better, by the "
        "intervals below. Best-of-N draws N an answer"
        f"{'; its success rate is pass@N' if report.zero_one else ''}."
    ) + _one_pool(report)
    return Table(
        "Gain and cost",
        note,
        ["method", *(c.label for c in columns), "on the front"],
        rows,
        1 + len(report.best_of_n),
    )


def pairs_table(report: ComparisonReport) -> Table:
    """Every two methods on the same prompts: the difference's interval, and who it shows to be better."""
    figures = {"win rate": "win_rate", "gold win rate": "gold_win_rate", "KL, nats": "kl"}
    if not report.gold:
        del figures["gold win rate"]
    header = ["methods", *(text for label in figures for text in (f"{label}: difference", "better"))]
    rows = [
        [
            f"{pair.first} - {pair.second}",
            *(text for key in figures.values() for text in _difference(pair, key)),
        ]
        for pair in report.pairs
    ]
    few = few_prompts(report.num_prompts)
    note = (
        "The first less the second, of means over seeds, with 95% intervals over prompts, paired: both on the same "
        "prompts against the same completions of the reference. A method is named only where the interval excludes "
        "zero; of KL less is better. It holds for the policies that were trained: those of other seeds differ, as "
        "the spread above says."
    )
    return Table("Which is better", f"{note} {few}" if few else note, header, rows)


def _difference(pair: Pair, key: str) -> tuple[str, str]:
    interval = getattr(pair, key)
    if interval is None:
        return MISSING, MISSING
    return f"{number(interval.estimate)} {bracket(interval)}", pair.better(key) or _NONE_SEEN


def _targets(report: ComparisonReport) -> Table:
    columns = [
        _Column(f"{direction}, N={n}", f"{direction}_kl_{n}", 2)
        for n in report.n
        for direction in ("backward", "forward")
    ]
    note = (
        "Backward: KL(policy ‖ best-of-N), low by at most (N-1)/(M+1) nats for M reference completions a prompt. "
        "Forward: KL(best-of-N ‖ policy), unbiased where rewards do not tie."
    )
    rows = [_cells(row, columns) for row in report.methods]
    return Table("KL to best-of-N, nats", note, ["method", *(c.label for c in columns)], rows)


def _effort(report: ComparisonReport) -> Table:
    columns = [
        _Column("completions drawn", "completions_drawn", 0),
        _Column("tokens trained", "tokens_trained", 0),
        _Column("steps", "steps", 0),
        _Column("seconds", "seconds", 0),
        _Column("peak memory, MiB", "peak_memory_bytes", 0, _MIB),
    ]
    note = (
        "The stored pool counts in full, completions and seconds, for every method that learns from it. Seconds: "
        "training steps with their drawing and scoring, without loading and evaluation (a command that does not "
        "report them: its whole process). Memory: of the accelerator, or else of the process."
    )
    rows = [[*_cells(row, columns), str(len(row.seeds))] for row in report.methods]
    return Table("What it took, a run", note, ["method", *(c.label for c in columns), "seeds"], rows)


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


def _cells(row: MethodRow, columns: Sequence[_Column], largest_n: float = math.inf) -> list[str]:
    most = {"equivalent_n": largest_n}
    return [
        row.name,
        *(cell(row.figures.get(c.key), c.digits, c.unit, most.get(c.key, math.inf)) for c in columns),
    ]


def _baseline(name: str, figures: dict[str, Any], columns: Sequence[_Column]) -> list[str]:
    return [name, *(number(figures.get(c.key), c.digits) for c in columns), ""]


def _grouped(value: float, digits: int) -> str:
    return f"{value:,.0f}" if digits == 0 else number(value, digits)
