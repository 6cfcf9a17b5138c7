"""The picture of recipes/circle.sh: the win rate of each way of serving, by the tokens drawn for an answer.

    python recipes/circle_picture.py --figures docs/circle.json --output docs/circle.png

Points are means over the runs, a bar their range (of one run, its interval over prompts). The line is best-of-N of
the base by exact law: N/(N+1) wins where no rewards tie, for N times the tokens of one sample.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nonpareil.evaluation.plots import INK, POLICY_COLOURS, REFERENCE_COLOUR, new_figure, png

BASE, DISTILLED = REFERENCE_COLOUR, POLICY_COLOURS[0]


def point(runs: list[dict[str, Any]], name: str) -> tuple[float, float, float, float]:
    """Tokens an answer, win rate, and the ends of its bar."""
    ways = [run["ways"][name] for run in runs]
    rates = [way["win_rate"] for way in ways]
    ends = rates if len(ways) > 1 else [ways[0]["low"], ways[0]["high"]]
    return statistics.mean(way["tokens"] for way in ways), statistics.mean(rates), min(ends), max(ends)


def circle_figure(figures: dict[str, Any]) -> Figure:
    """Three ways of serving one model."""
    runs = figures["runs"]
    found = {name: point(runs, name) for name in runs[0]["ways"]}
    one, many = found["base"][0], found["best"][0]
    with new_figure(6.4, 3.9) as (figure, (axes,)):
        orders = [1 + 7 * step / 100 for step in range(101)]
        axes.plot(
            [one * n for n in orders], [n / (n + 1) for n in orders], color=BASE, linewidth=1.4, zorder=2
        )
        for n in (2, 4):
            axes.plot(one * n, n / (n + 1), "o", color=BASE, markersize=5, zorder=3)
            axes.annotate(
                f"best of {n}",
                (one * n, n / (n + 1)),
                (6, -11),
                textcoords="offset points",
                color=BASE,
                fontsize=8,
            )
        for name, colour, marker in (("base", BASE, "o"), ("best", BASE, "o"), ("distilled", DISTILLED, "D")):
            tokens, rate, low, high = found[name]
            bar = [[rate - low], [high - rate]]
            axes.errorbar(
                tokens, rate, yerr=bar, fmt="none", ecolor=colour, capsize=3, elinewidth=1.3, zorder=4
            )
            axes.plot(tokens, rate, marker, color=colour, markersize=9, zorder=5)
        ends = (found["distilled"][0], found["distilled"][2]), (found["base"][0], found["base"][3])
        arrow = {"arrowstyle": "-|>", "color": DISTILLED, "linewidth": 1.6, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", *ends, arrowprops=arrow, zorder=3)  # between the bars
        for name, words, colour, offset, side in (
            ("base", "one sample of the base", BASE, (13, -22), "left"),
            ("best", "best of 8, served", BASE, (8, -58), "right"),
            ("distilled", "one sample, distilled", DISTILLED, (-6, 8), "left"),
        ):
            tokens, rate, _, high = found[name]
            height = high if name == "distilled" else rate  # above its bar, the others beside their points
            place: dict[str, Any] = {"textcoords": "offset points", "ha": side, "color": colour}
            cost = f"{tokens / one:.1f}".removesuffix(".0")
            words = f"{words}: {rate:.2f}\n{cost}x tokens"
            axes.annotate(
                words, (tokens, height), offset, va="bottom", fontsize=10, fontweight="bold", **place
            )
        axes.set(xlim=(0, 1.08 * many), ylim=(0.45, 0.95))
        axes.set(xlabel="tokens drawn for an answer", ylabel="win rate against the base")
        axes.set_title("Serve best-of-8, distil what was served, serve one sample", color=INK)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.write_bytes(png(circle_figure(json.loads(args.figures.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
