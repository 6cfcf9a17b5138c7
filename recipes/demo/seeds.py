"""Run the demo with several methods and seeds; print a table per method, one column per seed, and the spread.

python recipes/demo/seeds.py --output_dir runs --methods value_distillation jbond --seeds 0 1 2
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

FIGURES = {
    "reward before": lambda e: e["comparison"]["reference_mean"]["estimate"],
    "reward after": lambda e: e["comparison"]["policy_mean"]["estimate"],
    "win rate": lambda e: e["comparison"]["win_rate"]["estimate"],
    "KL, nats": lambda e: e["kl"]["estimate"],
    "KL efficiency": lambda e: e["kl_efficiency"]["estimate"],
    "worth best-of-": lambda e: e["equivalent_n"]["estimate"],
    "tokens before": lambda e: e["reference"]["mean_length"]["estimate"],
    "tokens after": lambda e: e["policy"]["mean_length"]["estimate"],
    "distinct-2 before": lambda e: e["reference"]["distinct"]["2"]["estimate"],
    "distinct-2 after": lambda e: e["policy"]["distinct"]["2"]["estimate"],
}


def run(method: str, seed: int, folder: Path, extra: list[str]) -> dict[str, float]:
    """The figures of one run, drawing, training, evaluation and report included in its seconds."""
    start = time.perf_counter()
    command = ["nonpareil", "distill", "--method", method, "--seed", str(seed), "--output_dir", str(folder)]
    done = subprocess.run([*command, "--json", *extra], stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    evaluation = json.loads(done.stdout.splitlines()[-1])["evaluation"]
    win, efficiency = evaluation["comparison"]["win_rate"], evaluation["kl_efficiency"]
    print(
        f"{method}, seed {seed}: "
        f"win rate {win['estimate']:.3f} [{win['low']:.3f}, {win['high']:.3f}], "
        f"KL efficiency {efficiency['estimate']:.3f} [{efficiency['low']:.3f}, {efficiency['high']:.3f}]",
        file=sys.stderr,
    )
    return {**{name: read(evaluation) for name, read in FIGURES.items()}, "seconds": seconds}


def print_table(seeds: list[int], rows: list[dict[str, float]]) -> None:
    """A row per figure: each seed's, mean and standard deviation."""
    print("| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | sd |")
    print("|---" * (len(rows) + 3) + "|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        cells = [f"{value:.3f}" for value in [*values, statistics.mean(values), spread]]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["value_distillation", "jbond"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, extra = parser.parse_known_args()
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in args.methods}
    for seed in args.seeds:  # the methods take turns, so that a busy minute falls on all of them
        for method in args.methods:
            rows[method].append(run(method, seed, args.output_dir / f"{method}-seed-{seed}", extra))
    for method in args.methods:
        print(f"\n{method}\n")
        print_table(args.seeds, rows[method])


if __name__ == "__main__":
    main()
