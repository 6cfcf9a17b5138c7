"""How far training on whole completions comes with ever more of them: KL efficiency by the number of completions.

    nonpareil sample --model_name_or_path src/nonpareil/assets/demo-lm \
        --dataset_name src/nonpareil/assets/demo-prompts/train.parquet \
        --reward_model_name_or_path src/nonpareil/assets/demo-rm --max_prompts 12800 --num_generations 16 \
        --max_completion_length 40 --dtype bfloat16 --seed 7 --output_dir pool
    python benchmarks/ceiling.py --groups pool --output_dir ceiling

The embedded demo's policy and reward model. Each run trains on the first groups of the pool by `nonpareil distill`
and is evaluated on test prompts that no run saw: rho squared (the KL efficiency of a small step along the trained
direction, evaluate's own estimate), and win rate, KL and KL efficiency at strength 1. The losses: `sft_bon`, the
likelihood of every completion weighted by its rank in its group, which is exact for best-of-n; `regression` of
the log-ratio on best-of-n's. Each is trained by recipes/imdb's plain SGD and by AdamW. A run that is there is read,
so that the sizes can be run one after another. In the end a fit of rho squared = limit n / (n + half) to
the best run of each size, by least squares; `half` completions reach half the limit.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from nonpareil.assets import demo_path

PER_PROMPT = 16
LOSSES = {"sft_bon": ["--n", "4", "--imitate", "all"], "regression": ["--n", "4"]}
OPTIMIZERS = {
    "sgd": [
        "--optim",
        "sgd",
        "--learning_rate",
        "0.2",
        "--frozen_parameters",
        "embed_tokens",
        "--warmup_steps",
        "3",
    ],
    "adamw": ["--learning_rate", "3e-4", "--adam_beta2", "0.98", "--warmup_steps", "0.1"],
}
"""SGD's gradients are clipped to norm 1, so that its learning rate is the length of a step."""


def run(args: argparse.Namespace, loss: str, optimizer: str, completions: int) -> dict[str, Any]:
    """One training and its evaluation, or what was found when it was run before."""
    folder = args.output_dir / f"{loss}-{optimizer}-{completions}-seed-{args.seed}"
    found = folder.with_suffix(".json")
    if found.is_file():
        return json.loads(found.read_text())
    words = {
        "model_name_or_path": demo_path("policy"),
        "reward_model_name_or_path": demo_path("reward"),
        "groups": args.groups,
        "max_train_prompts": completions // PER_PROMPT,
        "method": loss,
        "per_device_train_batch_size": 16,
        "num_train_epochs": args.epochs,
        "lr_scheduler_type": "linear",
        "max_completion_length": 40,
        "seed": args.seed,
        "save_strategy": "no",
        "report_to": "none",
        "eval_dataset_name": demo_path("prompts") / "test.parquet",
        "max_eval_prompts": 256,
        "num_generations_eval": 4,
        "num_reference_samples_eval": 16,
        "kl_dtype": "auto",
        "output_dir": folder,
    }
    command = ["nonpareil", "distill", "--json", "--overwrite", *LOSSES[loss], *OPTIMIZERS[optimizer]]
    for name, value in words.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    evaluation = json.loads(done.stdout.splitlines()[-1])["evaluation"]
    row = {
        "loss": loss,
        "optimizer": optimizer,
        "completions": completions,
        "rho_squared": evaluation["rho_squared"],
        "win_rate": evaluation["comparison"]["win_rate"],
        "kl": evaluation["kl"],
        "kl_efficiency": evaluation["kl_efficiency"],
    }
    found.write_text(json.dumps(row))
    return row


def limit_of(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Limit and half, fitted to the best run of each size."""
    best: dict[int, float] = {}
    for row in rows:
        size = row["completions"]
        best[size] = max(best.get(size, 0.0), row["rho_squared"]["estimate"])
    sizes, values = np.array(list(best)), np.array(list(best.values()))
    half = min(np.geomspace(10, 1e7, 2000), key=lambda half: _misfit(sizes / (sizes + half), values)[0])
    return _misfit(sizes / (sizes + half), values)[1], float(half)


def _misfit(shape: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Squares that are left, and the factor that leaves the least."""
    factor = float(shape @ values / (shape @ shape))
    return float(np.square(values - factor * shape).sum()), factor


def shown(figure: dict[str, float]) -> str:
    return f"{figure['estimate']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--completions", type=int, nargs="+", default=[4608, 18432, 73728, 204800])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| completions | loss | optimizer | rho squared | win rate | KL, nats | KL efficiency |")
    print("|--:|---|---|--:|--:|--:|--:|")
    for completions in args.completions:
        for loss in args.losses:
            for optimizer in args.optimizers:
                rows.append(run(args, loss, optimizer, completions))
                figures = " | ".join(
                    shown(rows[-1][name]) for name in ("rho_squared", "win_rate", "kl", "kl_efficiency")
                )
                print(f"| {completions:,} | {loss} | {optimizer} | {figures} |", flush=True)
    if len(args.completions) > 1:
        limit, half = limit_of(rows)
        print(f"\nrho squared = {limit:.3f} n / (n + {half:,.0f})")


if __name__ == "__main__":
    main()
