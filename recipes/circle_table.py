"""The table of recipes/circle.sh: what each way of serving gave, and what it cost.

    python recipes/circle_table.py --answers OUT/answers --evaluation OUT/evaluation

Answers are those of recipes/circle_client.py, of the same prompts for each way. Each answer that was served is held
against the samples of the base that `nonpareil evaluate` drew of its prompt (ties: half); one sample of the base
itself should win half the time.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circle_client import read_lines

from nonpareil.maths.bootstrap import bootstrap_interval
from nonpareil.maths.win_rate import pairwise
from nonpareil.rollouts.reading import read_groups

WAYS = {"base": "base, one sample", "best": "base, best of 8", "distilled": "distilled, one sample"}


def rewards_of_base(folder: Path) -> dict[str, list[float]]:
    """Of the base's samples of each prompt, NaN where one has none."""
    return {
        str(group.prompt): [float("nan") if reward is None else reward for reward in group.rewards]
        for group in read_groups(folder)
    }


def row(name: str, answers: list[dict[str, Any]], base: dict[str, list[float]], first: float) -> list[str]:
    """The cells of one way; `first` is the median latency that ratios are of."""
    win = pairwise(
        torch.tensor([[each["reward"]] for each in answers], dtype=torch.float64),
        torch.tensor([base[each["prompt"]] for each in answers], dtype=torch.float64),
    ).win_rate
    interval = bootstrap_interval(win, scale="share")
    median, late = np.quantile([each["seconds"] for each in answers], [0.5, 0.95])
    return [
        *(WAYS[name], f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"),
        f"{statistics.mean(each['reward'] for each in answers):.3f}",
        f"{statistics.mean(each['tokens'] for each in answers):.1f}",
        *(f"{seconds:.2f} s ({seconds / first:.2f})" for seconds in (median, late)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    args = parser.parse_args()
    base = rewards_of_base(args.evaluation / "reference")
    answers = {name: read_lines(args.answers / f"{name}.jsonl") for name in WAYS}
    first = statistics.median(each["seconds"] for each in answers["base"])
    heads = ["way of serving", "win rate against one sample of the base", "reward", "tokens drawn an answer"]
    print("| " + " | ".join([*heads, "latency, median", "95th percentile"]) + " |")
    print("|---" * 6 + "|")
    for name in WAYS:
        print("| " + " | ".join(row(name, answers[name], base, first)) + " |")
    report = json.loads((args.evaluation / "report.json").read_text(encoding="utf-8"))
    found = report.get("evaluation", report)
    win, kl, worth = found["comparison"]["win_rate"], found["kl"], found["equivalent_n"]
    print(
        f"\n{len(answers['base'])} prompts. `nonpareil evaluate` of the distilled policy: win rate "
        f"{win['estimate']:.3f} [{win['low']:.3f}, {win['high']:.3f}], worth best-of-{worth['estimate']:.2f}, "
        f"KL {kl['estimate']:.3f} nats. Brackets: 95% over prompts. In parentheses: latencies as multiples of the "
        "first row's median."
    )


if __name__ == "__main__":
    main()
