"""The report on disk: report.json, report.html (one file, no network, no script) and the pictures as PNG."""

import base64
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonpareil.evaluation import plots
from nonpareil.evaluation.by_source import curve_cells, source_cells, source_headings
from nonpareil.evaluation.curve import CurveReport
from nonpareil.evaluation.evaluation import Evaluation
from nonpareil.evaluation.groups import lengths_of, match_groups, rewards_of
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.numbers import bracket, number
from nonpareil.evaluation.pages import context_rows, page_template
from nonpareil.evaluation.rows import summary_rows
from nonpareil.evaluation.summary import headline
from nonpareil.files import jsonable, write_bytes, write_json
from nonpareil.records import Group, PromptText

NUM_SAMPLES = 12


def write_curve(curve: CurveReport, output_dir: str | Path, further: Mapping[str, Any] | None = None) -> Path:
    """Write curve.json and curve.png; returns the path of curve.json. Files of those names are replaced.

    `further` stands in curve.json beside the curve.
    """
    folder = Path(output_dir)
    write_bytes(folder / "curve.png", plots.png(plots.curve_figure(curve)))
    return write_json(folder / "curve.json", curve.to_dict() | dict(further or {}))


def write_report(
    evaluation: Evaluation,
    curve: CurveReport,
    policy_groups: Sequence[Group],
    reference_groups: Sequence[Group],
    output_dir: str | Path,
    title: str,
    context: Mapping[str, Any],
    *,
    seed: int = 0,
) -> Path:
    """Write report.json, report.html and the PNGs; returns the path of report.html.

    `context` says how the metrics came about (models, data, seed, versions, sampling); its keys become the
    rows of the report's last table. `seed` chooses the completions shown. Each file appears whole or not at
    all; files of those names are replaced.

    Raises:
        DataError: groups whose prompt ids do not match, or that are not scored.
        TypeError: a context value that JSON has no form for.
    """
    folder = Path(output_dir)
    content = {"title": title, "headline": headline(evaluation), "context": dict(context)}
    content |= {"evaluation": evaluation.to_dict(), "curve": curve.to_dict()}
    pictures = _pictures(evaluation, curve, policy_groups, reference_groups)
    template = page_template("nonpareil.evaluation", "report.html.j2", {"number": number, "bracket": bracket})
    page = template.render(
        title=title,
        headline=headline(evaluation),
        evaluation=evaluation,
        few_prompts=few_prompts(evaluation.num_prompts),
        curve=curve,
        sections=_sections(evaluation),
        sources=(source_headings(evaluation.comparison.zero_one), source_cells(evaluation.by_source)),
        curve_sources=(curve.source_headings(), curve_cells(curve.by_source)),
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        samples=sample_pairs(policy_groups, reference_groups, seed),
        context=context_rows(jsonable(dict(context))),
    )
    for name, data in pictures.items():
        write_bytes(folder / f"{name}.png", data)
    write_json(folder / "report.json", content)
    return write_bytes(folder / "report.html", page.encode())


def _pictures(
    evaluation: Evaluation, curve: CurveReport, policy: Sequence[Group], reference: Sequence[Group]
) -> dict[str, bytes]:
    drawn = {
        "frontier": plots.frontier_figure({"this policy": evaluation}),
        "curve": plots.curve_figure(curve),
        "rewards": plots.reward_figure(rewards_of(policy), rewards_of(reference)),
        "lengths": plots.length_figure(lengths_of(policy), lengths_of(reference)),
    }
    return {name: plots.png(figure) for name, figure in drawn.items()}


def _sections(evaluation: Evaluation) -> dict[str, list[Any]]:
    sections: dict[str, list[Any]] = {}
    for row in summary_rows(evaluation):
        sections.setdefault(row.section, []).append(row)
    return sections


@dataclass(frozen=True)
class SampleCompletion:
    """One completion as the report shows it."""

    text: str
    reward: float | None
    num_tokens: int
    stopped: bool


@dataclass(frozen=True)
class SamplePair:
    """A completion of each side for one prompt."""

    messages: list[dict[str, str]]
    """The prompt's turns; a plain prompt is one turn without a role."""
    policy: SampleCompletion
    reference: SampleCompletion


def sample_pairs(
    policy_groups: Sequence[Group], reference_groups: Sequence[Group], seed: int = 0
) -> list[SamplePair]:
    """Up to 12 prompts, and one completion of each side for them, all chosen by the seed and nothing else."""
    matched = match_groups(policy_groups, reference_groups)
    rng = random.Random(seed)
    rows = rng.sample(range(len(matched.policy)), min(NUM_SAMPLES, len(matched.policy)))
    pairs = []
    for row in rows:
        policy, reference = matched.policy[row], matched.reference[row]
        sides = [_sample(group, rng.randrange(len(group))) for group in (policy, reference)]
        pairs.append(SamplePair(_messages(policy.prompt), *sides))
    return pairs


def _sample(group: Group, index: int) -> SampleCompletion:
    return SampleCompletion(
        text=group.completions[index],
        reward=None if group.rewards is None else group.rewards[index],
        num_tokens=len(group.completion_token_ids[index]),
        stopped=group.finish_reasons[index] == "stop",
    )


def _messages(prompt: PromptText) -> list[dict[str, str]]:
    return [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
