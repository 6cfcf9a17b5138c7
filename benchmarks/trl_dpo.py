"""The peer of `nonpareil compare`: DPO or IPO on best-versus-worst with TRL's own DPOTrainer (extra `trl`).

    nonpareil export --groups nonpareil-groups --format preference --truncated allow --output pairs.jsonl
    python benchmarks/trl_dpo.py --model my-model --pairs pairs.jsonl --output_dir trl-dpo
    python benchmarks/trl_dpo.py --config recipes/imdb-dpo.yaml --seed 1

What would hurt TRL 1.16 here without a word (read in its sources), and what this script does about it:

- **It ends every completion.** `DPOTrainer._prepare_dataset` appends the end token to each `chosen` and `rejected`
  of a text dataset, so a completion that was cut at 40 tokens is trained to stop there. No setting turns that off,
  and a dataset that brings ids is tokenised all the same (the comment in `evaluate` says otherwise). What TRL does
  document is `data_collator`: ours takes the added token away again.
- **It tokenises the text anew.** A small model often spells a word in other tokens than its tokenizer would; where
  prompt and completion merge, TRL drops the prompt's end. `--groups`, the folder that the pairs are exported from,
  gives the same pairs with the ids that were drawn, the end token where it was drawn, and the same collator puts
  them in TRL's batches. With `--pairs` TRL keeps its own ids and no completion ends: text does not say which did.
  `--added_end true` keeps TRL's end token, for policies whose completions nearly all end by themselves.
- **BOS** is what the tokenizer puts in front by itself, once; with `--groups`, what the policy saw.
- **IPO averages.** `--loss_type ipo` divides each log-ratio by its completion's tokens; `sigmoid` (DPO) sums. For
  completions of one length L, beta here is L times the beta of the summed form: 40 x 0.0275 = 1.1 for BoNBoN's
  best-of-8. For mixed lengths it is another loss.
- Gradient checkpointing, on in TRL, only costs time here: off. Dropout is off, as in TRL. Weights, gradients and
  AdamW are float32. Matrices are multiplied in bfloat16 where this machine gains from it, and TRL's logits are such
  products (`--bf16 false` for float32); the reference runs beside the policy on the same batch, so that both round
  alike. Freed memory is kept for the next tensor, as `nonpareil distill` keeps it.

Writes the model, its tokenizer, checkpoint-<step>/ every `--save_steps`, trainer_state.json and spent.json.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.models.loading import freeze
from nonpareil.models.memory import keep_freed_memory
from nonpareil.rollouts import read_groups
from nonpareil.rollouts.select import best, worst

SIDES = ("prompt", "chosen", "rejected")


def pairs_of_text(path: Path) -> list[dict[str, Any]]:
    """The lines of a `nonpareil export --format preference` file."""
    # Not splitlines: reviews hold other characters that Python takes for line ends, such as U+0085.
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    if not rows or not all(isinstance(row[side], str) for row in rows for side in SIDES):
        raise SystemExit(f"--pairs {path}: needs lines with prompt, chosen and rejected, all plain text")
    return [{side: row[side] for side in SIDES} for row in rows]


def pairs_of_groups(folder: Path, n: int | None) -> list[dict[str, Any]]:
    """The pairs that `nonpareil export --truncated allow` would write, with the ids that were drawn."""
    rows = []
    for group in read_groups(folder):
        top, low = best(group, n), worst(group, n)
        if top is None or low is None or group.rewards[top] == group.rewards[low]:
            continue
        texts = (group.prompt, group.completions[top], group.completions[low])
        ids = (group.prompt_token_ids, group.completion_token_ids[top], group.completion_token_ids[low])
        if texts[1] != texts[2]:
            drawn = {f"drawn_{side}_ids": list(part) for side, part in zip(SIDES, ids, strict=True)}
            rows.append(dict(zip(SIDES, texts, strict=True)) | drawn)
    if not rows or not isinstance(rows[0]["prompt"], str):
        raise SystemExit(f"--groups {folder}: needs groups of plain-text prompts with unequal rewards")
    return rows


class DrawnIds(DataCollatorForPreference):
    """TRL's collator on the ids that were drawn; without them on TRL's, less the end token that it added."""

    added_end: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return super().torch_call([{f"{side}_ids": self.ids(e, side) for side in SIDES} for e in examples])

    def ids(self, example: dict[str, Any], side: str) -> list[int]:
        ids = example.get(f"drawn_{side}_ids", example[f"{side}_ids"])
        added = f"drawn_{side}_ids" not in example and side != "prompt" and ids[-1:] == [self.added_end]
        return ids[:-1] if added else ids


class CountedDPOTrainer(DPOTrainer):
    """TRL's trainer, whose tokens are counted as they are trained on, prompts included."""

    tokens_trained = 0

    def training_step(self, model, inputs, *args, **kwargs):
        self.tokens_trained += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *args, **kwargs)


class StepClock(TrainerCallback):
    """Seconds between each step's beginning and its end, optimizer included."""

    seconds = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.start


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags, which override the YAML of `--config`, which knows the same names and no other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--pairs", type=Path, help="preference JSON lines; or else --groups")
    parser.add_argument("--groups", type=Path, help="a `nonpareil sample` folder: the drawn ids are kept")
    parser.add_argument("--n", type=int, help="of --groups, the first n completions of each")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loss_type", choices=["sigmoid", "ipo"], default="sigmoid")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    parser.add_argument(
        "--optim", default="adamw_torch", help="TRL's default is adamw_torch_fused, the same law"
    )
    parser.add_argument("--frozen_parameters", nargs="*", default=[], help="parts of parameters' names")
    parser.add_argument("--lr_scheduler_type", default="linear")
    parser.add_argument("--warmup_steps", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max_steps", type=int, default=-1, help="overrides --epochs")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs per step")
    parser.add_argument("--save_steps", type=int, default=0, help="0: no checkpoints")
    parser.add_argument("--max_length", type=int, default=1024, help="prompt and completion, tokens")
    parser.add_argument("--added_end", choices=["true", "false"], default="false")
    parser.add_argument("--bf16", choices=["auto", "true", "false"], default="auto")
    config = parser.parse_known_args(argv)[0].config
    if config is not None:
        keys = yaml.safe_load(config.read_text()) or {}
        known = {action.dest for action in parser._actions} - {"config", "help"}
        if unknown := sorted(set(keys) - known):
            raise SystemExit(f"{config}: unknown key {unknown[0]!r}; it takes {', '.join(sorted(known))}")
        # As text, for argparse to convert: YAML reads 1e-4 as text anyway, and true as a bool.
        parser.set_defaults(**{key: as_flag(value) for key, value in keys.items()})
    args = parser.parse_args(argv)
    for name in ("model", "output_dir"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    if (args.pairs is None) == (args.groups is None):
        parser.error("give either --pairs or --groups")
    if args.n is not None and args.groups is None:
        parser.error("--n is read with --groups only; `nonpareil export --n` sets it for --pairs")
    return args


def as_flag(value: object) -> object:
    """A YAML value as the command line would give it; a list stays one."""
    if isinstance(value, list):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def settings(args: argparse.Namespace) -> DPOConfig:
    """The script's flags as TRL's."""
    device = best_device()
    bf16 = fast_dtype(device) is torch.bfloat16 if args.bf16 == "auto" else args.bf16 == "true"
    return DPOConfig(
        output_dir=str(args.output_dir),
        seed=args.seed,
        loss_type=[args.loss_type],
        beta=args.beta,
        learning_rate=args.learning_rate,
        optim=args.optim,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.warmup_steps,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        max_length=args.max_length,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 1,
        save_only_model=True,
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        remove_unused_columns=False,  # the drawn ids must reach the collator
        report_to="none",
    )


def respelled(dataset: Dataset, end: int) -> int:
    """Pairs of which TRL's ids, less the end token that it added, are not the ids that were drawn."""

    def differs(row: dict[str, Any], side: str) -> bool:
        drawn = row["drawn_prompt_ids"] + row[f"drawn_{side}_ids"]
        spelled = row["prompt_ids"] + row[f"{side}_ids"]
        return spelled[:-1] != (drawn[:-1] if drawn[-1] == end else drawn)

    return sum(differs(row, "chosen") or differs(row, "rejected") for row in dataset)


def main() -> None:
    args = arguments()
    keep_freed_memory()
    rows = pairs_of_text(args.pairs) if args.pairs else pairs_of_groups(args.groups, args.n)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    collator = DrawnIds(pad_token_id=tokenizer.pad_token_id, max_length=args.max_length)
    collator.added_end = None if args.added_end == "true" else tokenizer.eos_token_id
    clock = StepClock()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    freeze(model, args.frozen_parameters)
    trainer = CountedDPOTrainer(
        model=model,
        args=settings(args),
        data_collator=collator,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    if args.groups:
        count = respelled(trainer.train_dataset, tokenizer.eos_token_id)
        print(f"{count} of {len(rows)} pairs would not have kept the ids that were drawn", file=sys.stderr)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    spent = {
        "completions_drawn": 0,
        "tokens_drawn": 0,
        "tokens_trained": trainer.tokens_trained,
        "seconds": clock.seconds,
        "peak_memory_bytes": peak,
        "steps": trainer.state.global_step,
    }
    (args.output_dir / "spent.json").write_text(json.dumps(spent, indent=2) + "\n")
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
