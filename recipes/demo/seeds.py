"""Run the demo with several seeds and print one row per seed, and the spread.

python recipes/demo/seeds.py --output_dir runs --seeds 0 1 2
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


def run(seed: int, folder: Path, extra: list[str]) -> dict[str, float]:
    """The figures of one seed's run."""
    start = time.perf_counter()
    command = ["nonpareil", "distill", "--seed", str(seed), "--output_dir", str(folder), "--json", *extra]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    evaluation = json.loads(done.stdout.splitlines()[-1])["evaluation"]
    figures = {name: read(evaluation) for name, read in FIGURES.items()}
    win = evaluation["comparison"]["win_rate"]
    print(
        f"seed {seed}: win rate {win['estimate']:.3f} [{win['low']:.3f}, {win['high']:.3f}]", file=sys.stderr
    )
    return {**figures, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, extra = parser.parse_known_args()
    rows = [run(seed, args.output_dir / f"seed-{seed}", extra) for seed in args.seeds]
    print("| | " + " | ".join(f"seed {seed}" for seed in args.seeds) + " | mean | sd |")
    print("|---" * (len(rows) + 3) + "|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        cells = [f"{value:.3f}" for value in [*values, statistics.mean(values), spread]]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
