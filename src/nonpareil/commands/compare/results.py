"""Several methods, several seeds each, under one protocol: means, spreads, and who is on the Pareto front."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nonpareil.commands.compare.equal_win_rate import EqualWinRate, RunPoints, equal_win_rates
from nonpareil.commands.compare.over_seeds import Metrics, OverSeeds, mean_of, over_seeds
from nonpareil.commands.compare.pairs import Pair, dominated_by, pairs_of
from nonpareil.commands.compare.protocol import refuse_mixed
from nonpareil.commands.compare.seeds import SeedAgreement, refuse_other_draws, seed_agreements
from nonpareil.errors import DataError
from nonpareil.evaluation.curve import CurvePoint
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.evaluation.log_ratios import LogRatios
from nonpareil.evaluation.rows import summary_rows
from nonpareil.evaluation.worth import BestOfNPoint, PlanePoint
from nonpareil.files import jsonable


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
    evaluation: Evaluation
    """Perhaps on fewer prompts than the final one."""


@dataclass(frozen=True)
class AtStrength:
    """The final policy with more or less of its training."""

    strength: float
    evaluation: Evaluation
    """Perhaps on fewer prompts, as a checkpoint's."""


@dataclass(frozen=True)
class RunRecord:
    """One method trained with one seed, and evaluated."""

    name: str
    seed: int
    evaluation: Evaluation
    checkpoints: tuple[Checkpoint, ...]
    spent: Cost
    protocol: dict[str, Any]
    """What must be equal for metrics to be comparable: prompts, sampling, rewards, reference."""
    folder: str = ""
    """Relative to the comparison's."""
    stored: bool = False
    """Whether it learnt from the stored pool, which is the same for all seeds."""
    log_ratios: LogRatios | None = None
    """On the reference's completions; without those of all runs nothing is said of how seeds agree."""
    strengths: tuple[AtStrength, ...] = ()


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
    metrics: dict[str, OverSeeds | None]
    """By the names of `metrics_of`; `figures` in comparison.json."""
    path: tuple[PathPoint, ...]
    dominated_by: tuple[str, ...]
    """What paired intervals show to win no less at no more KL, one of them better; none: on the front."""


@dataclass(frozen=True)
class BestOfNRow(CurvePoint):
    """Best-of-n of the reference, which methods are held against."""

    kl: float
    """What it spends, nats, ties counted."""


@dataclass(frozen=True)
class ComparisonReport:
    """All methods, and what they are held against."""

    methods: tuple[MethodRow, ...]
    pairs: tuple[Pair, ...]
    """Every two methods, prompt by prompt."""
    agreements: tuple[SeedAgreement, ...]
    """Of the methods with two seeds or more: noise and direction."""
    runs: tuple[RunRecord, ...]
    num_prompts: int
    n: tuple[int, ...]
    """The best-of-N targets."""
    reference: Metrics
    """reward, mean_length."""
    best_of_n: tuple[BestOfNRow, ...]
    """Of the reference, at these N."""
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
    equal_win_rate: EqualWinRate | None
    """What the methods pay for the same win rates; None where no run was measured on its way."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what cannot be computed is null, infinities are the texts "Infinity" and "-Infinity".

        The metrics of each prompt and completion are left to the runs' own folders.
        """
        runs = tuple(replace(run, log_ratios=None) for run in self.runs)
        content = jsonable(replace(self, runs=runs), keep_infinities=True)
        for row in content["methods"]:
            row["figures"] = row.pop("metrics")
        for row, agreement in zip(content["agreements"], self.agreements, strict=True):
            row["would_help"] = agreement.would_help
        for run in content["runs"]:
            del run["log_ratios"]
            for each in (run, *run["checkpoints"], *run["strengths"]):
                del each["evaluation"]["by_prompt"]
        return content


def compare_runs(
    runs: Sequence[RunRecord],
    curve: Sequence[CurvePoint],
    reference: Mapping[str, Tensor] | None = None,
    win_rates: Sequence[float] = (),
) -> ComparisonReport:
    """Aggregate runs of one protocol; `curve` has the points of the reference's `CurveReport`.

    `reference` has its rewards [M] by prompt id, by which runs are held against each other at these win rates.
    Methods keep the order of their first run.

    Raises:
        DataError: no runs, two of one method and seed, runs whose protocols differ (each difference is named), or
            that were evaluated on other completions of the reference.
    """
    if not runs:
        raise DataError("there is no finished run to compare")
    labels = [_label(run) for run in runs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise DataError(f"these runs are there twice: {'; '.join(twice)}")
    refuse_unlike(runs)
    by_name: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    by_prompt = {name: [r.evaluation.by_prompt for r in rs] for name, rs in by_name.items()}
    pairs = pairs_of(by_prompt)
    dominated = dominated_by(by_prompt, pairs)
    first = runs[0].evaluation
    kl_of_best = {target.n: target.kl_upper_bound for target in first.targets}
    return ComparisonReport(
        methods=tuple(_row(name, rs, dominated[name]) for name, rs in by_name.items()),
        pairs=pairs,
        agreements=_agreements(by_name),
        runs=tuple(runs),
        num_prompts=first.num_prompts,
        n=tuple(kl_of_best),
        reference={
            "reward": first.comparison.reference_mean.estimate,
            "mean_length": first.reference.mean_length.estimate,
        },
        best_of_n=tuple(
            BestOfNRow(**vars(point), kl=kl_of_best[point.n]) for point in curve if point.n in kl_of_best
        ),
        zero_one=all(run.evaluation.comparison.zero_one for run in runs),
        gold=first.unseen.reward if first.unseen else None,
        largest_n=first.largest_n,
        frontier=first.comparison.frontier,
        gold_frontier=first.unseen.frontier if first.unseen else (),
        best_of_n_points=first.best_of_n,
        equal_win_rate=_equal_win_rates(runs, reference, win_rates),
    )


def _equal_win_rates(
    runs: Sequence[RunRecord], reference: Mapping[str, Tensor] | None, win_rates: Sequence[float]
) -> EqualWinRate | None:
    """None without the reference's rewards, too."""
    return equal_win_rates(list(map(_points, runs)), reference, win_rates) if reference else None


def _points(run: RunRecord) -> RunPoints:
    """A run's points on its two paths."""
    final = run.evaluation.by_prompt
    way = [*(each.evaluation.by_prompt for each in run.checkpoints), final]
    strengths = [(each.strength, each.evaluation.by_prompt) for each in run.strengths]
    return RunPoints(
        run.name,
        tuple((float(place), point) for place, point in enumerate(way, 1)),
        tuple(sorted([*strengths, (1.0, final)], key=lambda point: point[0])) if strengths else (),
    )


def _row(name: str, runs: Sequence[RunRecord], dominated_by: tuple[str, ...]) -> MethodRow:
    return MethodRow(
        name,
        tuple(run.seed for run in runs),
        over_seeds([metrics_of(run.evaluation, run.spent) for run in runs]),
        _path(runs),
        dominated_by,
    )


def _agreements(by_name: Mapping[str, Sequence[RunRecord]]) -> tuple[SeedAgreement, ...]:
    of_runs = {name: [run.log_ratios for run in runs] for name, runs in by_name.items()}
    known = {
        name: [ratios for ratios in of_seeds if ratios is not None] for name, of_seeds in of_runs.items()
    }
    stored = {name for name, runs in by_name.items() if any(run.stored for run in runs)}
    return seed_agreements(known, stored) if known == of_runs else ()


def metrics_of(evaluation: Evaluation, spent: Cost) -> Metrics:
    """What is averaged over seeds, by name: what the evaluation's rows say of it, and what the run took."""
    metrics: Metrics = {"gold_win_rate": None, "gold_reward": None}  # there without a gold reward too
    for row in summary_rows(evaluation):
        metrics |= {column.name: column.value for column in row.columns}
    return {**metrics, **vars(spent)}


def refuse_unlike(runs: Sequence[RunRecord]) -> None:
    """Refuse runs that cannot be paired: of other protocols, or on other completions of the reference.

    Raises:
        DataError: as `refuse_mixed`, or naming two runs.
    """
    if runs:
        refuse_mixed({_label(run): run.protocol for run in runs})
    refuse_other_draws({_label(run): run.log_ratios for run in runs if run.log_ratios is not None})


def _label(run: RunRecord) -> str:
    return f"{run.name}, seed {run.seed}"


def _path(runs: Sequence[RunRecord]) -> tuple[PathPoint, ...]:
    """The seeds' first checkpoints averaged, then their second ones, ...; steps may differ under a time budget."""
    points = []
    for place in range(max(len(run.checkpoints) for run in runs)):
        there = [run.checkpoints[place] for run in runs if place < len(run.checkpoints)]
        nothing = Cost(None, None, None, None, None)
        metrics = over_seeds([metrics_of(checkpoint.evaluation, nothing) for checkpoint in there])
        gold = metrics["gold_win_rate"]
        points.append(
            PathPoint(
                step=statistics.fmean(checkpoint.step for checkpoint in there),
                kl=mean_of(metrics, "kl"),
                win_rate=mean_of(metrics, "win_rate"),
                gold_win_rate=gold.mean if gold else None,
            )
        )
    return tuple(points)
