"""How long the pages of `nonpareil view` take over a large folder: the first one, sorts, searches, one group.

    python benchmarks/view.py [FOLDER] [--groups 100000] [--completions 8] [--tokens 64]

Makes the folder where it is not there yet (benchmarks/made_up_groups.py), starts `nonpareil view` in a process of
its own, and asks for pages as a browser would. `first page` is the first one that the fresh server gives: it may
say that not all files are read yet; `all files read` is when one no longer does. The rest are means of three
requests. Each in seconds on the wall and of the server's processor time: on a busy machine the second tells. Needs
the extra `view`.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

PAGES = {
    "table": "/groups/0/table",
    "overview": "/groups/0",
    "sort by gain": "/groups/0/table?sort=gain",
    "sort by spread, smallest first": "/groups/0/table?sort=spread&dir=up",
    "sort by tokens": "/groups/0/table?sort=length",
    "last page of a sort": "/groups/0/table?sort=gain&page={last}",
    "filter and sort": "/groups/0/table?field=gain&op=atleast&value=4&sort=best",
    "search prompts": "/groups/0/table?q=777",
    "search completions": "/groups/0/table?q=zzq&texts=1",
    "a group within a sort": "/groups/0/group/shard-00003.parquet/5?sort=gain",
}
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("nonpareil-view-benchmark"))
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    maker = Path(__file__).with_name("made_up_groups.py")
    sizes = [f"--{name}={getattr(options, name)}" for name in ("groups", "completions", "tokens")]
    if not (options.folder / "manifest.json").is_file():
        subprocess.run(
            [sys.executable, str(maker), str(options.folder), *sizes, "--rewards=scores"], check=True
        )
    begun = time.perf_counter()
    command = [sys.executable, "-m", "nonpareil", "view", "--groups", str(options.folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", process.stderr.readline())[0]
        with httpx.Client(base_url=address, timeout=600, trust_env=False) as client:
            measure(client, process.pid, begun, -(-options.groups // 50))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def measure(client: httpx.Client, pid: int, begun: float, last: int) -> None:
    print(f"{'':32}{'wall, s':>9}{'CPU, s':>9}")
    show("server answers", time.perf_counter() - begun, cpu_of(pid))
    timed("first page", client, "/groups/0/table", pid)
    while "files are read so far" in client.get("/groups/0/table").raise_for_status().text:
        time.sleep(0.5)
    show("all files read, from the start", time.perf_counter() - begun, cpu_of(pid))
    while "The curve is being made" in client.get("/groups/0").raise_for_status().text:
        time.sleep(0.5)
    show("best-of-N's curve, from the start", time.perf_counter() - begun, cpu_of(pid))
    for name, path in PAGES.items():
        timed(name, client, path.format(last=last), pid, REPEATS)
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    print(f"peak memory of the server: {int(peak[1]) / 1e6:.2f} GB")


def timed(name: str, client: httpx.Client, path: str, pid: int, repeats: int = 1) -> None:
    begun, cpu = time.perf_counter(), cpu_of(pid)
    for _ in range(repeats):
        client.get(path).raise_for_status()
    show(name, (time.perf_counter() - begun) / repeats, (cpu_of(pid) - cpu) / repeats)


def show(name: str, wall: float, cpu: float) -> None:
    print(f"{name:32}{wall:9.2f}{cpu:9.2f}", flush=True)


def cpu_of(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
