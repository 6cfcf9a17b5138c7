"""A path on disk: path.json, path.html (one file, no network, no script) and its picture as path.png."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nonpareil.evaluation import plots
from nonpareil.evaluation.intervals import few_prompts
from nonpareil.evaluation.pages import context_rows, page_template
from nonpareil.evaluation.path_tables import path_tables
from nonpareil.evaluation.strength_path import StrengthPath
from nonpareil.files import jsonable, write_bytes, write_json


def write_path(path: StrengthPath, output_dir: str | Path, title: str, context: Mapping[str, Any]) -> Path:
    """Write path.json, path.png and path.html, the last of which is returned; `context` as `write_report`'s.

    Raises:
        TypeError: a context value that JSON has no form for.
    """
    folder, picture = Path(output_dir), plots.png(path_figure(path))
    template = page_template("nonpareil.evaluation", "path.html.j2", {})
    page = template.render(
        title=title,
        path=path,
        tables=path_tables(path),
        few_prompts=few_prompts(path.num_prompts),
        picture=base64.b64encode(picture).decode(),
        context=context_rows(jsonable(dict(context))),
    )
    write_bytes(folder / "path.png", picture)
    write_json(folder / "path.json", {"title": title, "context": dict(context), "path": path.to_dict()})
    return write_bytes(folder / "path.html", page.encode())


def path_figure(path: StrengthPath) -> Figure:
    """KL spent against win rate: the limit of any policy, best-of-N, and the path with its strengths."""
    right = max(1.35, 1.12 * max(point.kl.estimate for point in path.points))
    colour = plots.POLICY_COLOURS[0]
    with plots.new_figure(6.4, 4.6) as (figure, (axes,)):
        plots.limit_line(axes, path.frontier, right)
        plots.mark_best_of_n(axes, path.best_of_n, right, "o", (7, -11))
        line = [[getattr(point, name) for point in path.line] for name in ("kl", "win_rate")]
        axes.plot(*line, color=colour, linewidth=1.4, zorder=4, label="this policy by strength")
        for point in path.points:
            at = point.kl.estimate, point.win_rate.estimate
            bars: dict[str, Any] = {"xerr": plots.spread(point.kl), "yerr": plots.spread(point.win_rate)}
            axes.errorbar(*at, fmt="D", color=colour, markersize=5, capsize=2, elinewidth=1, zorder=5, **bars)
            axes.annotate(
                f"{point.strength:g}", at, (6, -11), textcoords="offset points", color=colour, fontsize=8
            )
        lowest = min(0.5, *(point.win_rate.estimate for point in path.points))
        axes.set(xlim=(-0.02 * right, right), ylim=(lowest - 0.02, 1.0))
        axes.set(xlabel="KL from the reference, nats", ylabel="win rate against the reference")
        axes.set_title("The path from the reference, by strength")
        axes.text(0.02 * right, 0.985, "out of any policy's reach", va="top", color="#70757d", fontsize=9)
        figure.legend(loc="outside lower center", ncols=4)
    return figure
