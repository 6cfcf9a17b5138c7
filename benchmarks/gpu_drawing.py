"""Drawing on one GPU: the ways in which completions read their prompt's keys, and transformers' `generate`.

    python benchmarks/gpu_drawing.py --sizes 0.5B --new_tokens 128 256 --write drawing.json
    python benchmarks/gpu_drawing.py --smoke            the same code on the CPU, tiny

Llama-shaped models of random weights in bfloat16, whose completions never end early (see step.py); prompts of
uneven lengths, which need padding. The sides take turns. `float32` says whether completions by all ways are the
same; `profile` is a table of a few tokens of each.
"""

import argparse
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from step import make_model, make_prompts, make_tokenizer, spread
from torch.profiler import ProfilerActivity, profile

from nonpareil.engines import ways
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.engines.ways import BRANCHED, COPIED, SHARED
from nonpareil.records import SamplingParams

CUDA = torch.cuda.is_available()
WAYS = (SHARED, BRANCHED, COPIED)
PROFILED = 8
"""Tokens of a completion under the profiler."""


class Sides:
    """One model, its prompts, and the ways to draw from it."""

    def __init__(self, args: argparse.Namespace, size: str, dtype: torch.dtype):
        device = torch.device("cuda" if CUDA else "cpu")
        self.args = args
        self.model = make_model(size, args.prompt_tokens + max(args.new_tokens), device, dtype, seed=0)
        self.end = self.model.config.vocab_size
        whole = make_prompts(args.prompts, args.prompt_tokens, self.end, seed=0)
        cut = args.prompt_tokens // (2 * len(whole))  # the last is about half as long as the first
        self.prompts = [replace(p, token_ids=p.token_ids[i * cut :]) for i, p in enumerate(whole)]
        self.engine = TransformersEngine(self.model, make_tokenizer(self.end), max_tokens_per_batch=10**9)

    def ours(self, way: str, tokens: int, seed: int = 0) -> list[Any]:
        """By one way, also where the engine would not choose it."""
        self.engine.ways.taken = [] if way == COPIED else [way]
        ways.MOST_MASKED_ON_GPU = 10**6
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

    def turns(self, new_tokens: int) -> dict[str, Any]:
        """Tokens per second and peak bytes of each side."""
        sides: dict[str, Callable[[int, int], Any]] = {way: partial(self.ours, way) for way in WAYS}
        sides["generate"] = self.generate
        rates: dict[str, list[float]] = {name: [] for name in sides}
        peaks = {}
        for side in sides.values():
            side(PROFILED, 0)
        for turn in range(self.args.rounds):
            for name, side in sides.items():
                synchronize(fresh_peak=True)
                start = time.perf_counter()
                side(new_tokens, turn + 1)
                synchronize()
                seconds = time.perf_counter() - start
                peaks[name] = torch.cuda.max_memory_allocated() if CUDA else 0
                rates[name].append(len(self.prompts) * self.args.m * new_tokens / seconds)
        return {
            "rows": len(self.prompts) * self.args.m,
            "bytes_of_the_model": torch.cuda.memory_allocated() if CUDA else 0,
            "tokens_per_second": {name: spread(rate, 1) for name, rate in rates.items()},
            "peak_bytes": peaks,
        }

    def table(self, way: str) -> str:
        """What a few tokens of a way are spent on."""
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * CUDA]) as profiler:
            self.ours(way, PROFILED)
        key = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
        return profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60)


def synchronize(fresh_peak: bool = False) -> None:
    if CUDA:
        torch.cuda.synchronize()
        if fresh_peak:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def same_in_float32(args: argparse.Namespace, size: str) -> dict[str, Any]:
    """How many completions are the same as by copies, and how far apart their log-probs are."""
    few = {"prompts": min(4, args.prompts), "new_tokens": [min(64, *args.new_tokens)]}
    sides = Sides(argparse.Namespace(**{**vars(args), **few}), size, torch.float32)
    drawn = {way: sides.ours(way, few["new_tokens"][0]) for way in WAYS}
    told = {}
    for way in (SHARED, BRANCHED):
        same, gaps = [], [0.0]
        for one, other in zip(drawn[way], drawn[COPIED], strict=True):
            rows = zip(
                one.completion_token_ids,
                other.completion_token_ids,
                one.logprobs,
                other.logprobs,
                strict=True,
            )
            for ours, theirs, x, y in rows:
                same.append(ours == theirs)
                gaps += [abs(u - v) for u, v in zip(x, y, strict=True)] if same[-1] else []
        told[way] = {"same": sum(same), "of": len(same), "largest_gap": max(gaps)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=["0.5B", "1.5B"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(sizes=["tiny"], prompts=3, m=4, prompt_tokens=16, new_tokens=[4, 8])
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if CUDA else "CPU: a smoke run, no measurement",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: value for name, value in vars(args).items() if name not in ("write", "smoke")},
        "cases": [],
        "profile": {},
    }
    result["float32"] = same_in_float32(args, args.sizes[0])
    print(json.dumps(result["float32"]), flush=True)
    for size in args.sizes:
        sides = Sides(args, size, torch.bfloat16)
        for new_tokens in args.new_tokens:
            result["cases"].append({"size": size, "new_tokens": new_tokens, **sides.turns(new_tokens)})
            print(json.dumps(result["cases"][-1]), flush=True)
        result["profile"][size] = {way: sides.table(way) for way in WAYS}
        if args.write is not None:
            args.write.write_text(json.dumps(result, indent=2) + "\n")
        del sides


if __name__ == "__main__":
    main()
