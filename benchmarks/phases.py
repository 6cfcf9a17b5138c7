"""What bounds a step of each method: the seconds of drawing, scoring, anchor log-probs, and training.

    python benchmarks/phases.py [--prompts 64] [--steps 6] [--write benchmarks/results/phases-cpu.json]

The embedded demo's policy, reward model and prompts, 40 tokens per completion, all methods in one run. A step of
every method has the same prompts; groups that a method takes from disk are drawn before, and counted apart
(`groups`: seconds to draw and score them, a step's worth). Seconds are medians over steps, the first one left out.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import nonpareil
from nonpareil import DistillationConfig, DistillationTrainer, load_prompts, tokenize_prompts
from nonpareil.assets import demo_path
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.methods import BOND, JBOND, RLOO, VBON, BoNBoN, Regression, SFTBoN
from nonpareil.models.loading import load_policy
from nonpareil.models.memory import keep_freed_memory
from nonpareil.records import Group, SamplingParams
from nonpareil.rewards import RewardModel, load_rewards
from nonpareil.training.step.batch import score_groups

LENGTH, STORED = 40, 8
FRESH: dict[str, dict[str, Any]] = {
    "jbond": {"method": JBOND()},
    "bond": {"method": BOND(n=4, num_generations=4, num_reference_samples=16)},
    "vbon": {"method": VBON(n=4, num_generations=4, num_reference_samples=16)},
    "rloo": {"method": RLOO(num_generations=4)},
}
FROM_DISK: dict[str, dict[str, Any]] = {
    "vbon, cached": {"method": VBON(n=4, num_generations=4, stored=True)},
    "regression": {"method": Regression(n=4, stored=True)},
    "sft_bon": {"method": SFTBoN(n=8)},
    "bonbon": {"method": BoNBoN(n=8)},
}
LORA = {"jbond, LoRA": {"method": JBOND(), "use_peft": True, "lora_target_modules": ["all-linear"]}}
PHASES = ("draw", "score", "anchor_logprobs", "train")


class Clock:
    """Seconds by name, of functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, function: Callable) -> Callable:
        def wrapped(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[name].append(time.perf_counter() - start)

        return wrapped


def make_trainer(settings: dict[str, Any], folder: Path, args: argparse.Namespace, groups: Any) -> Any:
    config = DistillationConfig(
        output_dir=str(folder),
        max_steps=args.steps,
        per_device_train_batch_size=args.prompts,
        max_completion_length=LENGTH,
        max_tokens_per_batch=3072,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_completions=False,
        logging_steps=10**6,
        seed=args.seed,
        **settings,
    )
    policy, tokenizer = load_policy(str(demo_path("policy")), dtype=config.policy_dtype())
    prompts = None
    if groups is None:
        rows = load_prompts(str(demo_path("prompts") / "train.parquet"), limit=args.prompts * args.steps)
        prompts = tokenize_prompts(rows, tokenizer)
    reward = load_rewards(str(demo_path("reward")))
    return DistillationTrainer(policy, reward, config, prompts, processing_class=tokenizer, groups=groups)


def measure(settings: dict[str, Any], args: argparse.Namespace, groups: Any = None) -> dict[str, float]:
    """Medians of a step's seconds."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(settings, Path(folder), args, groups)
        if trainer.method.policy_draws + trainer.method.anchor_draws:
            actors = trainer.step_sampler.actors
            actors.draw = clock.timed("draw", actors.draw)
            actors.token_logprobs = clock.timed("anchor_logprobs", actors.token_logprobs)
            trainer.reward.score_each = clock.timed("score", trainer.reward.score_each)
        trainer.accumulator.step = clock.timed("train", trainer.accumulator.step)
        trainer.training_step = clock.timed("step", trainer.training_step)
        trainer.train()
    seconds = {name: statistics.median(clock.seconds[name][1:]) for name in clock.seconds}
    return {name: seconds.get(name, 0.0) for name in (*PHASES, "step")}


def draw_groups(args: argparse.Namespace) -> tuple[list[Group], float]:
    """Scored groups for every step, and the seconds of a step's worth of them."""
    policy, tokenizer = load_policy(str(demo_path("policy")))
    rows = load_prompts(str(demo_path("prompts") / "train.parquet"), limit=args.prompts * args.steps)
    prompts = tokenize_prompts(rows, tokenizer)
    start = time.perf_counter()
    draws = TransformersEngine(policy, tokenizer).draw(
        prompts, STORED, SamplingParams(LENGTH, seed=args.seed)
    )
    groups = [Group.of(prompt, drawn) for prompt, drawn in zip(prompts, draws, strict=True)]
    score_groups(groups, load_rewards([RewardModel(str(demo_path("reward")))]))
    return groups, (time.perf_counter() - start) / args.steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    groups, a_step = draw_groups(args)
    measured = {name: measure(settings, args) | {"groups": 0.0} for name, settings in (FRESH | LORA).items()}
    for name, settings in FROM_DISK.items():
        measured[name] = measure(settings, args, groups) | {"groups": a_step}
    print(f"| method | {' | '.join(PHASES)} | step | groups, a step's worth |")
    print("|---" * (len(PHASES) + 3) + "|")
    for name, seconds in measured.items():
        print(f"| {name} | " + " | ".join(f"{seconds[p]:.2f}" for p in (*PHASES, "step", "groups")) + " |")
    if args.write:
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": {
                "nonpareil": nonpareil.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "prompts_a_step": args.prompts,
            "seed": args.seed,
            "steps": args.steps,
            "seconds": measured,
        }
        args.write.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
