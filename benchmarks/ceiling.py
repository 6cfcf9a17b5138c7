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
so that the sizes can be run one after another. In the end, of four sizes or more, a power law is fitted to the best
run of each.
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


def power_law(rows: list[dict[str, Any]]) -> str:
    """Limit, factor and power of limit - factor n^-power: weighted least squares on the best run of each size.

    The interval holds the limits whose squared error is within 3.84 of the least: 95% were the errors of the sizes
    independent. They share their test prompts, so that it is rather too wide.
    """
    best: dict[int, dict[str, float]] = {}
    for row in rows:
        size, found = row["completions"], row["rho_squared"]
        if size not in best or found["estimate"] > best[size]["estimate"]:
            best[size] = found
    sizes = np.array(list(best), dtype=float)
    values, errors = (
        np.array([each[name] for each in best.values()]) for name in ("estimate", "standard_error")
    )

    def fitted(power: float) -> tuple[float, float, float, float]:
        shape = np.stack([np.ones_like(sizes), -(sizes**-power)], axis=1) / errors[:, None]
        limit, factor = np.linalg.lstsq(shape, values / errors, rcond=None)[0]
        missed = np.square(shape @ [limit, factor] - values / errors).sum()
        return float(missed), float(limit), float(factor), power

    fits = [fitted(power) for power in np.geomspace(0.02, 2, 400)]
    least, limit, factor, power = min(fits)
    limits = [each[1] for each in fits if each[0] <= least + 3.84 and each[1] <= 1]
    return (
        f"rho squared = {limit:.3f} - {factor:.2f} n^-{power:.3f}; "
        f"limits from {min(limits):.2f} to {max(limits):.2f} fit within its error"
    )


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
    if len(args.completions) > 3:
        print(f"\n{power_law(rows)}")


if __name__ == "__main__":
    main()
