"""The comparison on disk: comparison.json, .md, .html (one file, no network, no script) and the pictures."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonpareil.commands.compare.plots import gold_figure, pareto_figure
from nonpareil.commands.compare.results import ComparisonReport
from nonpareil.commands.compare.tables import front, tables
from nonpareil.commands.compare.text_table import TextTable
from nonpareil.evaluation.numbers import number
from nonpareil.evaluation.pages import context_rows, page_template
from nonpareil.evaluation.plots import png
from nonpareil.files import jsonable, write_bytes, write_json
from nonpareil.folders import discard
from nonpareil.markdown import plain


def write_comparison(
    report: ComparisonReport,
    output_dir: str | Path,
    *,
    title: str,
    context: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]] = (),
    over_budget: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write comparison.json, comparison.md, comparison.html, pareto.png and gold.png; returns the page's path.

    `context` says how the metrics came about and becomes the page's last table; `failures` are the runs that are
    missing, each with `run` and `reason`; `over_budget` those that are there and spent too much. Files of those
    names are replaced, each in one step.

    Raises:
        TypeError: a context value that JSON has no form for.
    """
    folder = Path(output_dir)
    pictures = {"pareto": png(pareto_figure(report))}
    if report.gold:
        pictures["gold"] = png(gold_figure(report))
    else:
        discard(folder / "gold.png")  # of an earlier report with a gold reward
    content_tables = tables(report)
    told = {"failures": list(failures), "over_budget": list(over_budget)}
    content = {"title": title, "context": dict(context), **told, **report.to_dict()}
    template = page_template(
        "nonpareil.commands.compare", "comparison.html.j2", {"number": number, "front": front}
    )
    page = template.render(
        title=title,
        headline=pareto_sentence(report),
        report=report,
        tables=content_tables,
        **told,
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        context=context_rows(jsonable(dict(context))),
    )
    for name, data in pictures.items():
        write_bytes(folder / f"{name}.png", data)
    write_json(folder / "comparison.json", content)
    write_bytes(folder / "comparison.md", markdown(content_tables, over_budget).encode())
    return write_bytes(folder / "comparison.html", page.encode())


def pareto_sentence(report: ComparisonReport) -> str:
    """The front in one sentence, from the least KL to the most."""
    on_front = [row for row in report.methods if not row.dominated_by]
    named = [
        (kl.mean, f"{row.name} ({number(rate.mean, 2)} at {number(kl.mean, 2)} nats)")
        for row in on_front
        if (rate := row.metrics["win_rate"]) and (kl := row.metrics["kl"])
    ]
    return f"On the Pareto front: {', '.join(text for _, text in sorted(named)) or 'none'}"


def markdown(content_tables: Sequence[TextTable], over_budget: Sequence[Mapping[str, Any]] = ()) -> str:
    """The tables, as `docs/` includes them."""
    parts = [f"### {table.title}\n\n{table.markdown()}\n\n{table.note}\n" for table in content_tables]
    if over_budget:
        listed = "\n".join(f"- {plain(each['run'])}: {plain(each['reason'])}" for each in over_budget)
        parts.append(f"### Over the budget\n\n{listed}\n")
    return "\n".join(parts)
