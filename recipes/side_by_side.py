"""The runs of comparisons side by side, in several processes on one accelerator; then the reports.

    python recipes/side_by_side.py recipes/chat-sums-gpu.yaml recipes/chat-advice-gpu.yaml --jobs 8 --minutes 7

`nonpareil compare` trains one method and seed after the other; a small model leaves most of a GPU idle. Here the
first run of each comparison goes alone, in the comparison's own folder: it draws the stored pool and the
reference's groups. Every other run is a `nonpareil compare` of its own in a copy of that folder, and what it made
is moved back. Seconds of a run are then those beside the others.

Seed by seed, all methods of a seed first. After `--minutes` no run is begun and those at work are stopped. The
reports (folder reports/) are of what is finished: comparison.md of the methods that have most seeds, and
comparison-K-seeds.md beside it where more methods have their first K. Ctrl-C and SIGTERM stop what is at work: a
training saves a checkpoint, and the same command goes on from there. The exit status is 1 where a run is missing.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

COMPARE = [sys.executable, "-m", "nonpareil.cli.main", "compare"]
DONE = Path("evaluation", "final", "report.json")
LISTED = ".nonpareil.json"


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-run.log")


class Comparison:
    """One comparison's file, and its folder."""

    def __init__(self, file: Path):
        self.started: list[subprocess.Popen] = []
        self.spec: dict[str, Any] = yaml.safe_load(file.read_text())
        self.root = Path(self.spec["output_dir"])
        stored = [name for name, settings in self.spec["methods"].items() if settings.get("stored")]
        names = [*stored[:1], *(name for name in self.spec["methods"] if name not in stored[:1])]
        self.runs = [(name, seed) for seed in self.spec["seeds"] for name in names]

    def begin(self, folder: Path, methods: list[str], seeds: list[int], *only: str) -> subprocess.Popen:
        """A process that does what is missing of these runs in a folder."""
        chosen = {name: self.spec["methods"][name] for name in methods}
        changed = {**self.spec, "output_dir": str(folder), "seeds": seeds, "methods": chosen}
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}-run.yaml")  # not the user's own, which may lie here
        file.write_text(yaml.safe_dump(changed, sort_keys=False))
        with log_of(folder).open("ab") as log:
            process = subprocess.Popen(
                [*COMPARE, "--config", str(file), *only],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is handed on by main(), once
            )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Ask every process at work to end."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()

    def place(self, name: str, seed: int) -> Path:
        return Path("runs", name, f"seed-{seed}")

    def is_done(self, name: str, seed: int) -> bool:
        return (self.root / self.place(name, seed) / DONE).is_file()

    def copied(self, name: str, seed: int) -> Path:
        """A folder of its own for one run, with the pool and the reference's groups."""
        folder = self.root.with_name(f"{self.root.name}-{name}-{seed}")
        if folder.exists() and not (folder / LISTED).is_file():  # it is deleted once its run is done
            raise SystemExit(f"{folder} is there, and is no comparison's; move it away")
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:  # renamed whole, or not there
                part, ignored = Path(place, "copy"), shutil.ignore_patterns("runs", "reports", "comparison.*")
                shutil.copytree(self.root, part, ignore=ignored)
                part.rename(folder)
        return folder

    def take_back(self, name: str, seed: int, folder: Path) -> None:
        """Move a finished run into the comparison's folder, and into its list of what is nonpareil's own."""
        place = self.place(name, seed)
        if not (folder / place / DONE).is_file():
            return
        (self.root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / place, self.root / place)
        mine, run = (json.loads((each / LISTED).read_text()) for each in (self.root, folder))
        mine["files"] |= {file: what for file, what in run["files"].items() if file.startswith(f"{place}/")}
        (self.root / LISTED).write_text(json.dumps(mine, indent=1))
        shutil.rmtree(folder)

    def first_run(self) -> None:
        """The first run of all, in the comparison's own folder: it draws what the others read."""
        name, seed = self.runs[0]
        if self.is_done(name, seed):
            return
        print(f"{self.root.name} {name} seed {seed}: begun, see {log_of(self.root)}", flush=True)
        if self.begin(self.root, [name], [seed]).wait():
            raise SystemExit(f"the first run of {self.root} failed; see {log_of(self.root)}")
        print(f"{self.root.name} {name} seed {seed}: done", flush=True)

    def report(self) -> None:
        """Of the methods that have all seeds, and of those that have fewer."""
        seeds: list[int] = self.spec["seeds"]
        before: list[str] = []
        (self.root / "reports").mkdir(exist_ok=True)
        for count in range(len(seeds), 0, -1):
            methods = [
                name
                for name in self.spec["methods"]
                if all(self.is_done(name, seed) for seed in seeds[:count])
            ]
            if methods != before:
                self.begin(self.root, methods, seeds[:count]).wait()
                for file in self.root.glob("comparison.*"):
                    name = f"comparison-{count}-seeds{file.suffix}" if before else file.name
                    shutil.copy(file, self.root / "reports" / name)
            before = methods


def at_once(comparisons: list[Comparison], jobs: int, ends: float) -> None:
    """Every run that is missing, at most `jobs` at a time, until the clock says `ends`."""
    with ThreadPoolExecutor(jobs) as threads:
        list(threads.map(Comparison.first_run, comparisons))
    places = range(max(len(each.runs) for each in comparisons))
    runs = [(each, *each.runs[place]) for place in places for each in comparisons if place < len(each.runs)]
    waiting = [(each, name, seed) for each, name, seed in runs if not each.is_done(name, seed)]
    working: list[tuple[subprocess.Popen, Comparison, str, int, Path]] = []
    stopping = False
    while working or waiting:
        if time.monotonic() > ends and not stopping:
            waiting, stopping = [], True
            for process, *_ in working:
                process.terminate()
        while waiting and len(working) < jobs:
            each, name, seed = waiting.pop(0)
            folder = each.copied(name, seed)
            process = each.begin(folder, list(each.spec["methods"]), [seed], "--only", name)
            working.append((process, each, name, seed, folder))
            print(f"{each.root.name} {name} seed {seed}: begun, see {log_of(folder)}", flush=True)
        time.sleep(0.2)
        for run in [run for run in working if run[0].poll() is not None]:
            working.remove(run)
            process, each, name, seed, folder = run
            each.take_back(name, seed, folder)
            ended = "done" if each.is_done(name, seed) else f"not done, see {log_of(folder)}"
            print(f"{each.root.name} {name} seed {seed}: {ended}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparisons", nargs="+", type=Path, help="files of `nonpareil compare`")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time")
    parser.add_argument("--minutes", type=float, default=600)
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes
    comparisons = [Comparison(file) for file in args.comparisons]

    def stop(*_: object) -> None:
        for each in comparisons:
            each.stop()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        at_once(comparisons, args.jobs, ends)
        with ThreadPoolExecutor(args.jobs) as threads:
            list(threads.map(Comparison.report, comparisons))
    except KeyboardInterrupt:  # what is at work was asked to end
        sys.exit("stopped; the same command goes on from what is saved")
    except BaseException:
        for each in comparisons:
            each.stop()
        raise
    finally:
        for process in [process for each in comparisons for process in each.started]:
            process.wait()
    missing = [
        f"{each.root.name} {name} seed {seed}"
        for each in comparisons
        for name, seed in each.runs
        if not each.is_done(name, seed)
    ]
    if missing:
        sys.exit(f"not done: {', '.join(missing)}; the same command does them")


if __name__ == "__main__":
    main()
