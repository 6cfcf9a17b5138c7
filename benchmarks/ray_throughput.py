"""Groups drawn and scored a second: `--engine ray` with one-thread workers against one process with all threads.

    python benchmarks/ray_throughput.py [--rounds 5] [--workers 2] [--write benchmarks/results/ray-cpu.json]

Both fill a new folder with the same shards of the embedded demo and take turns within one run: A B A B ...
One process is timed with its models already imported and the files read before; Ray's workers live for one
folder, so that each turn starts them anew. That start is told apart: `ray_first_shard_seconds` is the time to
the first shard on disk, and `ray_steady` the rate from when each worker has given one. `ray_whole` has it all.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from nonpareil.commands import sample
from nonpareil.options.demo import demo_defaults
from nonpareil.rollouts import read_groups


def fill(folder: Path, args: argparse.Namespace, **engine) -> dict[str, float]:
    """One run's groups per second: over all of it, and between the first and the last shard."""
    settings = {**demo_defaults("train"), "max_prompts": args.prompts, "num_generations": args.m}
    options = sample.SampleOptions(**settings, shard_size=args.shard_size, output_dir=str(folder), **engine)
    # Wall-clock, as the files' times are.
    began = time.time()
    sample.run(options)
    whole = time.time() - began
    written = sorted(path.stat().st_mtime for path in (folder / "data").glob("shard-*.parquet"))
    # From when each worker has given its first shard: then as many are begun as at the end are done.
    running = args.workers - 1
    after = args.prompts - args.workers * args.shard_size
    return {
        "whole": args.prompts / whole,
        "steady": after / (written[-1] - written[running]),
        "first": written[0] - began,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--shard_size", type=int, default=8)
    parser.add_argument("--m", type=int, default=8)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    if "OMP_NUM_THREADS" in os.environ:
        sys.exit("unset OMP_NUM_THREADS: it would hold back the one process that is to use all threads")
    turns: dict[str, list[dict[str, float]]] = {"one_process": [], "ray": []}
    load_before = os.getloadavg()[0]
    same = True
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fill(root / "warm", argparse.Namespace(**{**vars(args), "prompts": 4 * args.shard_size}))
        for _ in range(args.rounds):
            turns["one_process"].append(fill(root / "one", args))
            turns["ray"].append(fill(root / "ray", args, engine="ray", num_workers=args.workers))
            print(json.dumps({name: times[-1] for name, times in turns.items()}), flush=True)
            one, ray = (read_groups(root / name) for name in ("one", "ray"))
            same &= [g.completion_token_ids for g in one] == [g.completion_token_ids for g in ray]
            shutil.rmtree(root / "one")
            shutil.rmtree(root / "ray")
    pairs = list(zip(turns["ray"], turns["one_process"], strict=True))
    # One process draws all shards and then scores all, writing each twice: its steady rate is its whole run's.
    result = {
        "date": date.today().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "threads_of_one_process": torch.get_num_threads(),
            "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
        "versions": {
            name: importlib.metadata.version(name) for name in ("nonpareil", "torch", "transformers", "ray")
        },
        "settings": {key: value for key, value in vars(args).items() if key != "write"},
        "same_tokens_in_both": same,
        "groups_per_second": {
            "one_process": spread([turn["whole"] for turn in turns["one_process"]]),
            "ray_whole": spread([turn["whole"] for turn in turns["ray"]]),
            "ray_steady": spread([turn["steady"] for turn in turns["ray"]]),
        },
        "ray_first_shard_seconds": spread([turn["first"] for turn in turns["ray"]]),
        "ratio_ray_steady_to_one_process": spread([a["steady"] / b["whole"] for a, b in pairs]),
        "ratio_ray_whole_to_one_process": spread([a["whole"] / b["whole"] for a, b in pairs]),
    }
    print(json.dumps(result, indent=2))
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
