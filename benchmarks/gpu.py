"""J-BOND steps and drawing on one GPU: throughput by phase, peak memory, and what a step spends its time on.

    bash benchmarks/gpu.sh                    the tests marked gpu, then all cases; benchmarks/results/gpu-NAME.json
    python benchmarks/gpu.py --sizes 0.5B --trained lora --prompts 64
    python benchmarks/gpu.py --smoke          the same code on the CPU, tiny, in under a minute; writes nothing

Each case is a process of its own: a size that does not fit the GPU's memory is written down as that, any other
failure with its last words, and the rest goes on. Models are Llama-shaped with random weights and a vocabulary of
128,256, trained as `nonpareil distill` does (bfloat16 compute). Completions never end early (see step.py), so
throughput is that of full batches. The device is synchronised at the borders of phases:

    draw               the policy's and the anchor's completions of all prompts
    score              a cheap Python reward; a reward model's pass comes on top
    anchor_logprobs    of the policy's completions
    forward_backward   all passes of the step
    optimizer_ema      AdamW, and the anchor's moving average
    other              clipping, bookkeeping

Drawing takes turns with transformers' own `generate(num_return_sequences=m)`: same model, prompts, tokens, run.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from step import PHASES, SHAPES, Phases, make_model, make_prompts, make_tokenizer, make_trainer, spread
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

import nonpareil
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.records import SamplingParams

RESULTS = Path(__file__).parent / "results"
SMOKE = {"sizes": ["tiny"], "prompts": 4, "prompt_tokens": 16, "completion_tokens": 8}
SMOKE |= {"max_tokens_per_batch": 512, "steps": 2, "rounds": 2}
CASE_SECONDS = 1800
OUT_OF_MEMORY = "out of memory"


def on_cuda() -> bool:
    return torch.cuda.is_available()


def synchronize() -> None:
    if on_cuda():
        torch.cuda.synchronize()


def reset_peak() -> None:
    if on_cuda():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    return torch.cuda.max_memory_allocated() if on_cuda() else 0


class OneStepProfiled(TrainerCallback):
    """torch.profiler over the last step, whose seconds are then not counted."""

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda() else [])]
        self.profiler = profile(activities=activities)

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == state.max_steps - 1:
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == state.max_steps:
            synchronize()
            self.profiler.stop()

    def table(self) -> str:
        """The operations that took longest, of the device where there is one, and of the host."""
        events = self.profiler.key_averages()
        keys = ["self_cuda_time_total"] * on_cuda() + ["self_cpu_time_total"]
        return "\n\n".join(f"by {key}\n{events.table(sort_by=key, row_limit=25)}" for key in keys)


def steps_case(args: argparse.Namespace, size: str, trained: str) -> dict[str, Any]:
    """Seconds, rates and peak memory of J-BOND steps; the profile's table is written where results go."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            size,
            Path(folder),
            lora=trained == "lora",
            bf16=True,
            prompts=args.prompts,
            prompt_tokens=args.prompt_tokens,
            completion_tokens=args.completion_tokens,
            max_tokens_per_batch=args.max_tokens_per_batch,
            steps=args.warmup + args.steps + 1,
            seed=args.seed,
        )
        phases, profiled = Phases(trainer, synchronize, reset_peak, peak), OneStepProfiled()
        trainer.add_callback(profiled)
        trainer.train()
    measured = phases.seconds[args.warmup : -1]
    assert len(measured) == args.steps
    spent = trainer.spent
    drawn = phases.completions * args.prompts
    length = args.prompt_tokens + args.completion_tokens
    assert spent.tokens_drawn == drawn * length * len(phases.seconds), "a completion ended early"
    trained_tokens = spent.tokens_trained / len(phases.seconds)
    seconds = [step["step"] for step in measured]
    for step in measured:
        step["other"] = step["step"] - sum(step[name] for name in PHASES)
    if args.folder:
        (args.folder / f"{args.name}-{size}-{trained}-profile.txt").write_text(profiled.table() + "\n")
    return {
        "parameters": sum(p.numel() for n, p in trainer.model.named_parameters() if "lora_" not in n),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "steps_per_second": spread([1 / s for s in seconds]),
        "completions_per_second": spread([drawn / s for s in seconds], 2),
        "trained_tokens_per_second": spread([trained_tokens / s for s in seconds], 1),
        "seconds": {name: spread([step[name] for step in measured]) for name in ("step", *PHASES, "other")},
        "peak_bytes": max(phases.peaks.values()),
        "peak_bytes_by_phase": dict(phases.peaks),
        "completions_a_step": drawn,
        "trained_tokens_a_step": trained_tokens,
    }


def drawing_case(args: argparse.Namespace, size: str) -> dict[str, Any]:
    """Drawn tokens a second of the engine and of `generate`, in turns."""
    device = torch.device("cuda" if on_cuda() else "cpu")
    length = args.prompt_tokens + args.completion_tokens
    model = make_model(size, length, device, torch.bfloat16, args.seed)
    end = model.config.vocab_size
    prompts = make_prompts(args.prompts, args.prompt_tokens, end, args.seed)
    # One batch on both sides: how a larger one is split is not what is compared.
    engine = TransformersEngine(model, make_tokenizer(end), max_tokens_per_batch=10**9)
    ids = torch.tensor([prompt.token_ids for prompt in prompts], device=device)

    def ours(turn: int) -> int:
        draws = engine.draw(prompts, args.m, SamplingParams(args.completion_tokens, seed=turn))
        return sum(len(ids) for draw in draws for ids in draw.completion_token_ids)

    @torch.inference_mode()
    def theirs(turn: int) -> int:
        torch.manual_seed(turn)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            num_return_sequences=args.m,
            max_new_tokens=args.completion_tokens,
            eos_token_id=end,
            pad_token_id=0,
        )
        return out[:, args.prompt_tokens :].numel()

    wanted = args.prompts * args.m * args.completion_tokens

    def rate(side: Callable[[int], int], turn: int) -> float:
        synchronize()
        start = time.perf_counter()
        count = side(turn)
        synchronize()
        assert count == wanted, "a completion ended early"
        return count / (time.perf_counter() - start)

    rate(ours, 0), rate(theirs, 0)
    pairs = [(rate(ours, turn), rate(theirs, turn)) for turn in range(1, args.rounds + 1)]
    return {
        "rows": args.prompts * args.m,
        "tokens_per_second": spread([mine for mine, _ in pairs], 1),
        "generate_tokens_per_second": spread([other for _, other in pairs], 1),
        "ratio": spread([mine / other for mine, other in pairs], 3),
        "peak_bytes": peak(),
    }


def run_case(args: argparse.Namespace, size: str, what: str) -> None:
    """In the case's own process: one line of JSON."""
    try:
        result = drawing_case(args, size) if what == "drawing" else steps_case(args, size, what)
    except torch.OutOfMemoryError as error:
        result = {"failed": OUT_OF_MEMORY, "reason": str(error).split(". ")[0], "peak_bytes": peak()}
    print(json.dumps(result))


def child(arguments: list[str], size: str, what: str) -> dict[str, Any]:
    """A case in a process of its own; how it failed, where it did."""
    command = [sys.executable, __file__, *arguments, "--case", size, what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {CASE_SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": f"exit status {done.returncode}", "reason": done.stderr[-2000:]}
    return json.loads(lines[-1])


def about(args: argparse.Namespace) -> dict[str, Any]:
    import accelerate
    import peft

    device = torch.cuda.get_device_properties(0) if on_cuda() else None
    packages = {"torch": torch, "transformers": transformers, "accelerate": accelerate, "peft": peft}
    return {
        "date": datetime.date.today().isoformat(),
        "device": device.name if device else f"CPU ({platform.machine()}): a smoke run, no measurement",
        "device_memory_bytes": device.total_memory if device else None,
        "cuda": torch.version.cuda,
        "versions": {
            "nonpareil": nonpareil.__version__,
            **{name: module.__version__ for name, module in packages.items()},
            "python": platform.python_version(),
        },
        "host_cores": os.cpu_count(),
        "tests": args.tests,
        "settings": {name: getattr(args, name) for name in SETTINGS},
    }


LENGTHS = ("prompts", "prompt_tokens", "completion_tokens", "max_tokens_per_batch")
SETTINGS = (*LENGTHS, "m", "warmup", "steps", "rounds", "seed")


def parsed() -> tuple[argparse.Namespace, list[str]]:
    """The settings, and the arguments that hand them to a case's process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", choices=list(SHAPES), default=["0.5B", "1.5B"])
    parser.add_argument("--trained", nargs="*", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--prompts", type=int, default=32, help="a step")
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--completion_tokens", type=int, default=128)
    parser.add_argument("--max_tokens_per_batch", type=int, default=65536)
    parser.add_argument("--m", type=int, default=4, help="completions per prompt, drawing alone")
    parser.add_argument("--warmup", type=int, default=1, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=3, help="steps that are; one more is profiled")
    parser.add_argument("--rounds", type=int, default=3, help="turns of engine and generate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result: gpu-NAME.json; by default the GPU's")
    parser.add_argument("--folder", type=Path, help="where results go; default benchmarks/results")
    parser.add_argument("--tests", help="the closing line of pytest -m gpu, to be kept with the figures")
    parser.add_argument("--smoke", action="store_true", help="tiny, on any machine; writes to --folder only")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        vars(args).update(SMOKE)
    elif not on_cuda():
        raise SystemExit("no CUDA device: nothing to measure; --smoke runs the same code on the CPU")
    elif args.folder is None:
        args.folder = RESULTS
    if args.name is None:
        name = torch.cuda.get_device_name() if on_cuda() else "smoke"
        args.name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    handed = [f"--{name}={getattr(args, name)}" for name in (*SETTINGS, "name")]
    handed += [f"--folder={args.folder}"] if args.folder else []
    return args, handed + ["--smoke"] * args.smoke


def main() -> None:
    args, handed = parsed()
    if args.case:
        run_case(args, *args.case)
        return
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**about(args), "cases": []}
    for size in args.sizes:
        for what in (*args.trained, "drawing"):
            result["cases"].append({"size": size, "what": what, **child(handed, size, what)})
            print(json.dumps(result["cases"][-1]), flush=True)
            if args.folder:  # after each case: an unattended run may be cut short
                (args.folder / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    unexpected = [case for case in result["cases"] if case.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY]
    if unexpected:
        raise SystemExit(f"{len(unexpected)} cases failed; see above")


if __name__ == "__main__":
    main()
