"""Drawing on one GPU: a prompt's keys held once for its completions, a copy for each, and transformers' `generate`.

    python benchmarks/gpu_drawing.py --out drawing.json
    python benchmarks/gpu_drawing.py --smoke            the same code on the CPU, tiny

Llama-shaped models of random weights in bfloat16, whose completions never end early (see step.py); prompts of one
length, and of uneven lengths, which need padding. The three sides take turns. `float32` says whether the
completions of both of our ways are the same; `profile` is a table of a few tokens of each.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from step import make_model, make_prompts, make_tokenizer, spread
from torch.profiler import ProfilerActivity, profile

from nonpareil.engines.transformers import TransformersEngine
from nonpareil.engines.ways import COPIED, SHARED
from nonpareil.records import SamplingParams

CUDA = torch.cuda.is_available()
PROFILED = 8
"""Tokens of a completion under the profiler."""


class Sides:
    """One model, its prompts, and the three ways to draw from it; each returns how many tokens it drew."""

    def __init__(self, args: argparse.Namespace, size: str, dtype: torch.dtype, uneven: bool):
        device = torch.device("cuda" if CUDA else "cpu")
        self.args = args
        self.model = make_model(size, args.prompt_tokens + args.new_tokens, device, dtype, seed=0)
        self.end = self.model.config.vocab_size
        whole = make_prompts(args.prompts, args.prompt_tokens, self.end, seed=0)
        cut = (
            args.prompt_tokens // (2 * len(whole)) * uneven
        )  # the last prompt is about half as long as the first
        self.prompts = [replace(p, token_ids=p.token_ids[i * cut :]) for i, p in enumerate(whole)]
        self.engine = TransformersEngine(self.model, make_tokenizer(self.end), max_tokens_per_batch=10**9)
        self.way = self.engine.ways.first

    def ours(self, way: str, tokens: int, seed: int = 0) -> list[Any]:
        self.engine.ways.taken = [] if way == COPIED else [way]
        return self.engine.draw(self.prompts, self.args.m, SamplingParams(tokens, seed=seed))

    @torch.inference_mode()
    def generate(self, tokens: int, seed: int) -> None:
        torch.manual_seed(seed)
        width = max(len(p.token_ids) for p in self.prompts)
        pad = [width - len(p.token_ids) for p in self.prompts]
        ids = [[0] * n + p.token_ids for n, p in zip(pad, self.prompts, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in pad]
        out = self.model.generate(
            input_ids=torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            do_sample=True,
            top_k=0,
            num_return_sequences=self.args.m,
            max_new_tokens=tokens,
            eos_token_id=self.end,
            pad_token_id=0,
        )
        assert out.shape[1] == width + tokens, "a completion ended early"

    def turns(self) -> dict[str, Any]:
        """Tokens per second and peak bytes of each side."""
        sides: dict[str, Callable[[int, int], Any]] = {
            SHARED: lambda tokens, seed: self.ours(SHARED, tokens, seed),
            COPIED: lambda tokens, seed: self.ours(COPIED, tokens, seed),
            "generate": self.generate,
        }
        drawn = len(self.prompts) * self.args.m * self.args.new_tokens
        rates: dict[str, list[float]] = {name: [] for name in sides}
        peaks = {}
        for side in sides.values():
            side(PROFILED, 0)
        for turn in range(self.args.rounds):
            for name, side in sides.items():
                if CUDA:
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    torch.cuda.synchronize()
                start = time.perf_counter()
                side(self.args.new_tokens, turn + 1)
                if CUDA:
                    torch.cuda.synchronize()
                    peaks[name] = torch.cuda.max_memory_allocated()
                rates[name].append(drawn / (time.perf_counter() - start))
        held = torch.cuda.memory_allocated() if CUDA else 0
        ratios = {
            f"{SHARED} / {other}": spread(
                [a / b for a, b in zip(rates[SHARED], rates[other], strict=True)], 3
            )
            for other in (COPIED, "generate")
        }
        rows = {"chosen": self.way, "rows": len(self.prompts) * self.args.m, "bytes_of_the_model": held}
        return {
            **rows,
            "tokens_per_second": {n: spread(r, 1) for n, r in rates.items()},
            **ratios,
            "peak_bytes": peaks,
        }

    def table(self, way: str) -> str:
        """What a few tokens of a way are spent on."""
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * CUDA]) as profiler:
            self.ours(way, PROFILED)
        key = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
        return profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60)


def same_in_float32(args: argparse.Namespace, size: str) -> dict[str, Any]:
    """How many completions are the same both ways, and how far apart their log-probs are."""
    sides = Sides(args, size, torch.float32, uneven=True)
    one, other = (sides.ours(way, args.new_tokens) for way in (SHARED, COPIED))
    pairs = [
        (a, b, x, y)
        for ours, theirs in zip(one, other, strict=True)
        for a, b, x, y in zip(
            ours.completion_token_ids,
            theirs.completion_token_ids,
            ours.logprobs,
            theirs.logprobs,
            strict=True,
        )
    ]
    gaps = [abs(u - v) for a, b, x, y in pairs if a == b for u, v in zip(x, y, strict=True)]
    return {
        "same": sum(a == b for a, b, _, _ in pairs),
        "of": len(pairs),
        "largest_gap": max(gaps, default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=["0.5B", "1.5B"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(sizes=["tiny"], prompts=3, m=4, prompt_tokens=16, new_tokens=8)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = torch.cuda.get_device_name() if CUDA else "CPU: a smoke run, no measurement"
    result: dict[str, Any] = {"device": device, "versions": versions, "cases": [], "profile": {}}
    vars(args)["out"], out = None, args.out
    result["settings"] = {**vars(args)}
    few = argparse.Namespace(
        **{**vars(args), "prompts": min(4, args.prompts), "new_tokens": min(64, args.new_tokens)}
    )
    result["float32"] = same_in_float32(few, args.sizes[0])
    print(json.dumps(result["float32"]), flush=True)
    for size in args.sizes:
        for uneven in (False, True):
            sides = Sides(args, size, torch.bfloat16, uneven)
            result["cases"].append({"size": size, "uneven": uneven, **sides.turns()})
            print(json.dumps(result["cases"][-1]), flush=True)
            if uneven:
                result["profile"][size] = {way: sides.table(way) for way in (SHARED, COPIED)}
                print(*result["profile"][size].values(), sep="\n", flush=True)
            if out is not None:
                out.write_text(json.dumps(result, indent=2) + "\n")
            del sides


if __name__ == "__main__":
    main()
