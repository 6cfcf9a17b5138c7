"""What a folder of many groups costs: to store, to go on with, its curve, an export, an evaluation's report.

    python benchmarks/scale.py [--groups 1000 10000 100000] [--completions 16] [--tokens 16] [--write RESULTS.json]
    python benchmarks/scale.py --smoke

Groups are made up (`made_up_groups.py`), so that no model's time is among the figures; all else is the package's
own. Each figure is of a fresh process with one thread: CPU seconds after the imports, and the most memory beyond
what the imports took. Costs should grow as the groups do: the figure is the cost of a further group between the
last two sizes over that between the first two. Memory: what a further thousand groups took, between the last two.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nonpareil

NEARLY_LINEAR = 1.5
"""Most that a further group may cost over one of the smaller sizes; clocks of a busy machine are no better."""


def store(folder: Path, args: argparse.Namespace, groups: int) -> Callable[[], object]:
    """Groups made up, written as shards, counted."""
    from made_up_groups import fill_folder

    import nonpareil.models.first_fingerprint  # noqa: F401  (what a resume imports, before the clock starts)

    return lambda: fill_folder(folder / "groups", groups, args.completions, args.tokens)


def resume(folder: Path, args: argparse.Namespace, groups: int) -> Callable[[], object]:
    """The same call again, which finds everything done."""
    return store(folder, args, groups)


def export_json_lines(folder: Path, args: argparse.Namespace, groups: int) -> Callable[[], object]:
    """The best and the worst of each group as JSON lines."""
    return _export(folder, "pairs.jsonl")


def export_parquet(folder: Path, args: argparse.Namespace, groups: int) -> Callable[[], object]:
    """The same as Parquet."""
    return _export(folder, "pairs.parquet")


def _export(folder: Path, name: str) -> Callable[[], object]:
    from nonpareil.commands.export import run
    from nonpareil.options.export import ExportOptions
    from nonpareil.rollouts import export  # noqa: F401  (imported before the clock starts)

    options = ExportOptions(groups=str(folder / "groups"), output=str(folder / name), format="preference")
    return lambda: run(options)


def curve(folder: Path, args: argparse.Namespace, groups: int) -> Callable[[], object]:
    """What best-of-N is worth, with its picture."""
    import nonpareil.evaluation.report
    import nonpareil.rollouts  # noqa: F401
    from nonpareil.commands.curve import run
    from nonpareil.options.curve import CurveOptions

    options = CurveOptions(groups=str(folder / "groups"), output_dir=str(folder / "curve"))
    return lambda: run(options)


def report(folder: Path, args: argparse.Namespace, groups: int) -> Callable[[], object]:
    """An evaluation's figures with their intervals, of groups read from disk: the report without its pages."""
    import torch

    from nonpareil.evaluation import best_of_n_report, evaluate_groups
    from nonpareil.rollouts.reading import stored_groups

    def evaluate() -> None:
        ours, theirs = (list(stored_groups(folder / "groups", ("logprobs",))) for _ in range(2))
        divergence = torch.rand(groups, args.completions)
        evaluate_groups(ours, theirs, policy_kl=divergence, policy_log_ratio=divergence)
        best_of_n_report(theirs)

    return evaluate


PARTS = {part.__name__: part for part in (store, resume, curve, export_json_lines, export_parquet, report)}


def peak_mb() -> float:
    """Most memory that this process has held."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_here(part: str, folder: Path, args: argparse.Namespace, groups: int) -> dict[str, float]:
    """Run one part in this process."""
    work = PARTS[part](folder, args, groups)
    imports, begun, clock = peak_mb(), time.process_time(), time.perf_counter()
    work()
    return {
        "cpu_seconds": round(time.process_time() - begun, 3),
        "wall_seconds": round(time.perf_counter() - clock, 3),
        "memory_mb": round(peak_mb() - imports, 1),
        "imports_mb": round(imports, 1),
    }


def measure(part: str, folder: Path, args: argparse.Namespace, groups: int) -> dict[str, float]:
    """Run one part in a fresh process of one thread."""
    numbers = [str(args.completions), "--tokens", str(args.tokens)]
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--groups", str(groups)]
    done = subprocess.run(
        [*command, "--completions", *numbers],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def growth(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """What a further group costs between the last two sizes, and that over the same of the two before."""
    slopes = [(values[i + 1] - values[i]) / (sizes[i + 1] - sizes[i]) for i in range(len(sizes) - 1)]
    return slopes[-1], slopes[-1] / slopes[-2] if len(slopes) > 1 and slopes[-2] > 0 else float("nan")


def show(part: str, groups: int, figure: dict[str, float]) -> None:
    """Print one figure, as soon as it is known."""
    cost = f"{figure['cpu_seconds']:>9.2f} s {figure['memory_mb']:>8.0f} MB"
    print(f"{part:>18} {groups:>8} groups {cost}", flush=True)


def show_growth(part: str, sizes: list[int], figures: list[dict[str, float]]) -> dict[str, float | None]:
    """Print and return how one part's figures grow."""
    each, ratio = growth(sizes, [figure["cpu_seconds"] for figure in figures])
    memory, _ = growth(sizes, [figure["memory_mb"] for figure in figures])
    verdict = "too small to tell" if ratio != ratio else "linear" if ratio <= NEARLY_LINEAR else "NOT linear"
    print(
        f"{part:>18} {verdict}: a further group {1e6 * each:.0f} us ({ratio:.2f} times that of the smaller sizes), "
        f"a further thousand {1e3 * memory:.2f} MB"
    )
    return {
        "us_per_group": round(1e6 * each, 1),
        "ratio": None if ratio != ratio else round(ratio, 2),
        "mb_per_1000": round(1e3 * memory, 3),
    }


def main() -> None:
    """Measure every part at every size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=1, help="of which the median is taken")
    parser.add_argument("--smoke", action="store_true", help="three tiny sizes: that it runs")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        print(json.dumps(measure_here(args.part, args.folder, args, args.groups[0])))
        return
    sizes = [64, 128, 256] if args.smoke else sorted(args.groups)
    found: dict[str, list[dict[str, float]]] = {part: [] for part in args.parts}
    for groups in sizes:
        with tempfile.TemporaryDirectory() as folder:
            if "store" not in args.parts:
                measure("store", Path(folder), args, groups)
            for part in args.parts:
                runs = [measure(part, Path(folder), args, groups) for _ in _turns(part, args)]
                found[part].append(_median(runs))
                show(part, groups, found[part][-1])
    grown = {part: show_growth(part, sizes, figures) for part, figures in found.items()}
    if args.write:
        result = {
            "machine": {"processor": platform.machine(), "threads": 1},
            "version": nonpareil.__version__,
            "completions": args.completions,
            "tokens": args.tokens,
            "rounds": args.rounds,
            "groups": sizes,
            "parts": {part: {"runs": found[part], "growth": grown[part]} for part in found},
        }
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps(result, indent=2) + "\n")


def _turns(part: str, args: argparse.Namespace) -> range:
    """A store can be filled once; exports would find their file there."""
    return range(1 if part == "store" or part.startswith("export") else args.rounds)


def _median(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in figures) for name in figures[0]}


if __name__ == "__main__":
    main()
