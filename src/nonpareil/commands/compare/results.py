"""Several methods, several seeds each, under one protocol: means, spreads, and who is on the Pareto front."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nonpareil.commands.compare.over_seeds import Figures, OverSeeds, mean_of, over_seeds
from nonpareil.commands.compare.pairs import Pair, dominated_by, pairs_of
from nonpareil.errors import DataError
from nonpareil.evaluation.worth import BestOfNPoint, PlanePoint
from nonpareil.files import jsonable
from nonpareil.settings import differing, flat


@dataclass(frozen=True)
class Cost:
    """What a run took. None where a run does not say."""

    completions_drawn: int | None
    """By the run itself, and the stored pool where it learnt from one."""
    tokens_trained: int | None
    steps: int | None
    seconds: float | None
    """Of its steps, drawing and scoring included (of its whole process, where it does not say), and of drawing the
    part of the pool that it used."""
    peak_memory_bytes: int | None
    """Of the accelerator where the run trained on one, else the process's largest resident memory."""


@dataclass(frozen=True)
class Checkpoint:
    """A policy on the way."""

    step: int
    evaluation: dict[str, Any]
    """As `Evaluation.to_dict`; perhaps on fewer prompts than the final one."""


@dataclass(frozen=True)
class RunRecord:
    """One method trained with one seed, and evaluated."""

    name: str
    seed: int
    evaluation: dict[str, Any]
    """As `Evaluation.to_dict`."""
    checkpoints: tuple[Checkpoint, ...]
    spent: Cost
    protocol: dict[str, Any]
    """What must be equal for figures to be comparable: prompts, sampling, rewards, reference."""
    folder: str = ""
    """Relative to the comparison's."""
    stored: bool = False
    """Whether it learnt from the stored pool, which is the same for all seeds."""


@dataclass(frozen=True)
class PathPoint:
    """One checkpoint, averaged over the seeds that have one at this place."""

    step: float
    kl: float
    win_rate: float
    gold_win_rate: float | None


@dataclass(frozen=True)
class MethodRow:
    """One method over its seeds."""

    name: str
    seeds: tuple[int, ...]
    figures: dict[str, OverSeeds | None]
    """By the keys of `figures_of`."""
    path: tuple[PathPoint, ...]
    dominated_by: tuple[str, ...]
    """Methods that paired intervals show to win no less at no more KL, one of them better; none: on the front."""


@dataclass(frozen=True)
class ComparisonReport:
    """All methods, and what they are held against."""

    methods: tuple[MethodRow, ...]
    pairs: tuple[Pair, ...]
    """Every two methods, prompt by prompt."""
    runs: tuple[RunRecord, ...]
    num_prompts: int
    n: tuple[int, ...]
    """The best-of-N targets."""
    reference: Figures
    """reward, mean_length."""
    best_of_n: tuple[dict[str, Any], ...]
    """Measured points of `CurveReport` at these N, as JSON has them, and the `kl` of each, ties counted."""
    zero_one: bool
    """Whether every run's rewards are 0 or 1: then `reward` is a success rate, and best-of-N's is pass@N."""
    gold: str | None
    """The unseen reward's name."""
    largest_n: int
    """The largest N that the reference groups can show; an `equivalent_n` there means as much or more."""
    frontier: tuple[PlanePoint, ...]
    """The best that any policy can do under the trained reward, ties counted."""
    gold_frontier: tuple[PlanePoint, ...]
    """The same under the unseen reward; empty without one."""
    best_of_n_points: tuple[BestOfNPoint, ...]
    """Best-of-N of the reference on the same plane."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what cannot be computed is null, infinities are the texts "Infinity" and "-Infinity".

        The figures of each prompt are left to the runs' own reports.
        """
        short = [
            replace(run, evaluation=_short(run.evaluation), checkpoints=_short_of(run)) for run in self.runs
        ]
        return jsonable(replace(self, runs=tuple(short)), keep_infinities=True)


def compare_runs(runs: Sequence[RunRecord], curve: Mapping[str, Any]) -> ComparisonReport:
    """Aggregate runs of one protocol; `curve` is the reference's `CurveReport.to_dict`.

    Methods keep the order of their first run.

    Raises:
        DataError: no runs, two of one method and seed, or runs whose protocols differ (each difference is
            named).
    """
    if not runs:
        raise DataError("there is no finished run to compare")
    labels = [f"{run.name}, seed {run.seed}" for run in runs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise DataError(f"these runs are there twice: {'; '.join(twice)}")
    refuse_mixed(dict(zip(labels, (run.protocol for run in runs), strict=True)))
    by_name: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    for label, run in zip(labels, runs, strict=True):
        _refuse_old(label, run.evaluation)
    figures = {
        name: over_seeds([figures_of(r.evaluation, r.spent) for r in rs]) for name, rs in by_name.items()
    }
    pairs = pairs_of({name: [r.evaluation["by_prompt"] for r in rs] for name, rs in by_name.items()})
    dominated = dominated_by(list(by_name), pairs)
    first = runs[0].evaluation
    spent = {target["n"]: target["kl_upper_bound"] for target in first["targets"]}
    n = tuple(spent)
    return ComparisonReport(
        methods=tuple(
            MethodRow(name, tuple(r.seed for r in rs), figures[name], _path(rs), dominated[name])
            for name, rs in by_name.items()
        ),
        pairs=pairs,
        runs=tuple(runs),
        num_prompts=first["num_prompts"],
        n=n,
        reference={
            "reward": _estimate(first["comparison"]["reference_mean"]),
            "mean_length": _estimate(first["reference"]["mean_length"]),
        },
        best_of_n=tuple({**p, "kl": spent[p["n"]]} for p in curve["points"] if p["n"] in spent),
        zero_one=all(run.evaluation["comparison"]["zero_one"] for run in runs),
        gold=first["unseen"]["reward"] if first["unseen"] else None,
        largest_n=first["largest_n"],
        frontier=_points(first["comparison"]),
        gold_frontier=_points(first["unseen"]),
        best_of_n_points=tuple(BestOfNPoint(**point) for point in first["best_of_n"]),
    )


def figures_of(evaluation: Mapping[str, Any], spent: Cost) -> Figures:
    """The table's figures of one evaluation, by name; None for what it could not compute."""
    compared, unseen = evaluation["comparison"], evaluation["unseen"]
    length = _estimate(evaluation["policy"]["mean_length"])
    before = _estimate(evaluation["reference"]["mean_length"])
    drift = None if length is None or before is None else length - before
    figures: Figures = {
        "win_rate": _estimate(compared["win_rate"]),
        "gold_win_rate": _estimate(unseen["win_rate"]) if unseen else None,
        "reward": _estimate(compared["policy_mean"]),
        "gold_reward": _estimate(unseen["policy_mean"]) if unseen else None,
        "kl": _estimate(evaluation["kl"]),
        "kl_efficiency": _estimate(evaluation["kl_efficiency"]),
        "equivalent_n": _estimate(evaluation["equivalent_n"]),
        "length_drift": drift,
        "length_drift_percent": 100 * drift / before if drift is not None and before else None,
    }
    for target in evaluation["targets"]:
        for direction in ("backward", "forward"):
            figures[f"{direction}_kl_{target['n']}"] = _estimate(target[f"{direction}_kl"])
    return {**figures, **vars(spent)}


def refuse_mixed(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse runs that were not measured alike; each run's protocol is held against the first one's.

    Raises:
        DataError: naming the runs and every setting that differs, with both values.
    """
    (first, expected), *others = protocols.items()
    lines = [
        f"  {name}: {difference}"
        for name, protocol in others
        for difference in other_settings(expected, protocol)
    ]
    if lines:
        raise DataError(
            f"these runs were not measured as {first!r} was, so their figures cannot be compared:\n"
            + "\n".join(lines)
            + "\nEvaluate them anew under one protocol (--overwrite)."
        )


def other_settings(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Every setting that differs, by dotted name, as `key: <found> instead of <expected>`."""
    both = differing(flat(expected), flat(found))
    return [f"{key}: {there!r} instead of {here!r}" for key, (here, there) in both.items()]


def _points(compared: Mapping[str, Any] | None) -> tuple[PlanePoint, ...]:
    return tuple(PlanePoint(**point) for point in compared["frontier"]) if compared else ()


def _estimate(interval: Mapping[str, Any] | None) -> float | None:
    estimate = None if interval is None else interval["estimate"]
    return None if estimate is None else float(estimate)  # of an infinity JSON has the text


def _refuse_old(label: str, evaluation: Mapping[str, Any]) -> None:
    """An evaluation of an earlier version, which lacks what is compared here."""
    lacks = "knew no ties" if "frontier" not in evaluation["comparison"] else "kept no figures of each prompt"
    if "by_prompt" not in evaluation or "frontier" not in evaluation["comparison"]:
        raise DataError(
            f"{label} was evaluated by an earlier version, which {lacks}: evaluate anew (--overwrite)"
        )


def _short(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key != "by_prompt"}


def _short_of(run: RunRecord) -> tuple[Checkpoint, ...]:
    return tuple(replace(each, evaluation=_short(each.evaluation)) for each in run.checkpoints)


def _path(runs: Sequence[RunRecord]) -> tuple[PathPoint, ...]:
    """The seeds' first checkpoints averaged, then their second ones, ...; steps may differ under a time budget."""
    points = []
    for place in range(max(len(run.checkpoints) for run in runs)):
        there = [run.checkpoints[place] for run in runs if place < len(run.checkpoints)]
        nothing = Cost(None, None, None, None, None)
        figures = over_seeds([figures_of(checkpoint.evaluation, nothing) for checkpoint in there])
        gold = figures["gold_win_rate"]
        points.append(
            PathPoint(
                step=statistics.fmean(checkpoint.step for checkpoint in there),
                kl=mean_of(figures, "kl"),
                win_rate=mean_of(figures, "win_rate"),
                gold_win_rate=gold.mean if gold else None,
            )
        )
    return tuple(points)
