"""What `keep_freed_memory` saves: a training step's forward and backward pass, with and without it.

    python benchmarks/allocator.py [--rounds 3]

Each side runs in a process of its own, in turn (CPU, glibc). Prints the median seconds of each and the ratio.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

STEPS = 4


def one_side(keep: bool) -> float:
    """Seconds of one pass over 24 sequences of 256 tokens of a model of the demo policy's shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nonpareil.assets import demo_path
    from nonpareil.models.memory import keep_freed_memory

    if keep:
        assert keep_freed_memory()
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(demo_path("policy")), dtype=torch.float32
    )
    ids = torch.randint(8192, (24, 256), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        model.zero_grad()

    step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["keep", "default"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(one_side(args.side == "keep"))
        return
    seconds: dict[str, list[float]] = {"keep": [], "default": []}
    for _ in range(args.rounds):
        for side, values in seconds.items():
            command = [sys.executable, __file__, "--side", side]
            values.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    ratios = sorted(d / k for d, k in zip(seconds["default"], seconds["keep"], strict=True))
    print(
        json.dumps(
            {
                "seconds_default": round(statistics.median(seconds["default"]), 3),
                "seconds_kept": round(statistics.median(seconds["keep"]), 3),
                "ratio_median": round(statistics.median(ratios), 2),
                "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
            }
        )
    )


if __name__ == "__main__":
    main()
