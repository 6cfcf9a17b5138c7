"""The figures of recipes/circle.sh, and their table: what each way of serving gave, and what it cost.

    python recipes/circle_table.py --figures figures.json --runs OUT/seed-0 OUT/seed-1 OUT/seed-2
    python recipes/circle_table.py --figures docs/circle.json

The first reads the runs and writes the figures; both print the table of them. A run has the answers of
recipes/circle_client.py, of the same prompts for each way. Each answer that was served is held against the samples
of the base that `nonpareil evaluate` drew of its prompt (ties: half); one sample of the base itself should win half
the time.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circle_client import read_lines

from nonpareil.maths.bootstrap import bootstrap_interval
from nonpareil.maths.win_rate import pairwise
from nonpareil.rollouts.reading import read_groups

WAYS = {"base": "base, one sample", "best": "base, best of 8", "distilled": "distilled, one sample"}
HEADS = (
    *("way of serving", "win rate against one sample of the base", "reward", "tokens drawn an answer"),
    *("CPU seconds an answer", "latency, median", "95th percentile"),
)


def rewards_of_base(folder: Path) -> dict[str, list[float]]:
    """Of the base's samples of each prompt, NaN where one has none."""
    return {
        str(group.prompt): [float("nan") if reward is None else reward for reward in group.rewards]
        for group in read_groups(folder)
    }


def way_figures(
    answers: list[dict[str, Any]], base: dict[str, list[float]], costs: list[dict[str, Any]]
) -> dict[str, Any]:
    """What one way of serving gave in one run: means over prompts, the win rate with its interval over them."""
    win = pairwise(
        torch.tensor([[each["reward"]] for each in answers], dtype=torch.float64),
        torch.tensor([base[each["prompt"]] for each in answers], dtype=torch.float64),
    ).win_rate
    interval = bootstrap_interval(win, scale="share")
    median, late = np.quantile([each["seconds"] for each in answers], [0.5, 0.95]).tolist()
    spent = sum(each["cpu_seconds"] for each in costs)
    return {
        **{
            "answers": len(answers),
            "win_rate": interval.estimate,
            "low": interval.low,
            "high": interval.high,
        },
        "reward": statistics.mean(each["reward"] for each in answers),
        "tokens": statistics.mean(each["tokens"] for each in answers),
        "cpu_seconds": spent / sum(each["answers"] for each in costs) if costs else None,
        **{"median": median, "late": late},
    }


def run_figures(run: Path) -> dict[str, Any]:
    """All that one seed gave."""
    base = rewards_of_base(run / "evaluation/reference")
    report = json.loads((run / "evaluation/report.json").read_text(encoding="utf-8"))
    found = report.get("evaluation", report)
    trained = run / "train-cpu-seconds"
    return {
        "run": run.name,
        "served": len(read_lines(run / "served-answers/best.jsonl")),
        "training_cpu_seconds": sum(map(float, trained.read_text().split())) if trained.exists() else None,
        "evaluation": {
            "win_rate": found["comparison"]["win_rate"]["estimate"],
            "low": found["comparison"]["win_rate"]["low"],
            "high": found["comparison"]["win_rate"]["high"],
            "kl": found["kl"]["estimate"],
            **{
                name: found[key]
                and found[key]["estimate"]  # neither is told of a policy that is not shown to win
                for name, key in (("kl_efficiency", "kl_efficiency"), ("worth", "equivalent_n"))
            },
        },
        "ways": {
            name: way_figures(
                read_lines(run / f"answers/{name}.jsonl"),
                base,
                read_lines(run / f"answers/{name}.cost.jsonl"),
            )
            for name in WAYS
        },
    }


def over_seeds(values: Iterable[float | None], digits: int = 3) -> str:
    """The mean over runs, and their standard deviation where there are several; none where a run has none."""
    known = list(values)
    if any(value is None for value in known):
        return "not known"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def win_cell(found: list[dict[str, Any]]) -> str:
    """A win rate: its spread over runs, or the interval over prompts of the only one."""
    mean = over_seeds(each["win_rate"] for each in found)
    return mean if len(found) > 1 else f"{mean} [{found[0]['low']:.3f}, {found[0]['high']:.3f}]"


def row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """The cells of one way; ratios are to one sample of the base in the same run."""
    found = [run["ways"][name] for run in runs]
    first = [run["ways"]["base"] for run in runs]

    def timed(key: str, of: str, unit: str) -> str:
        seconds = over_seeds((each[key] for each in found), 2)
        if seconds == "not known":
            return seconds
        ratios = (each[key] / one[of] for each, one in zip(found, first, strict=True))
        return f"{seconds}{unit} ({over_seeds(ratios, 2)})"

    return [
        *(WAYS[name], win_cell(found), over_seeds(each["reward"] for each in found)),
        over_seeds((each["tokens"] for each in found), 1),
        *(
            timed("cpu_seconds", "cpu_seconds", ""),
            timed("median", "median", " s"),
            timed("late", "median", " s"),
        ),
    ]


def lines(figures: dict[str, Any]) -> list[str]:
    """The table, and what else there is to say, as Markdown."""
    runs = figures["runs"]
    several = len(runs) > 1
    evaluated = [run["evaluation"] for run in runs]
    sizes = {(run["served"], run["ways"]["base"]["answers"]) for run in runs}
    if len(sizes) > 1:
        sys.exit(
            f"the runs have other numbers of requests served and asked: {sorted(sizes)}; give those of one size"
        )
    ((served, asked),) = sizes
    kl, efficiency = (over_seeds(each[key] for each in evaluated) for key in ("kl", "kl_efficiency"))
    worth = over_seeds((each["worth"] for each in evaluated), 2)
    training = over_seeds((run["training_cpu_seconds"] for run in runs), 0)
    told = [
        f"{len(runs)} {'seeds' if several else 'seed'}; {served} requests served and distilled, {asked} asked.",
        f"`nonpareil evaluate` of the distilled policy: win rate {win_cell(evaluated)}, KL {kl} nats,",
        f"KL efficiency {efficiency}, worth best-of-n with n = {worth}; its training: {training} CPU seconds.",
        "±: standard deviation over seeds." if several else "Brackets: 95% over prompts.",
        "In parentheses: multiples of the first row's CPU seconds, and of its median latency.",
    ]
    return [
        "| " + " | ".join(HEADS) + " |",
        "|---" * len(HEADS) + "|",
        *("| " + " | ".join(row(name, runs)) + " |" for name in WAYS),
        "",
        " ".join(told),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+")
    args = parser.parse_args()
    if args.runs:
        figures = {"runs": [run_figures(run) for run in args.runs]}
        args.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(json.loads(args.figures.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
