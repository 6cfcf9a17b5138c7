"""The peer of the chat comparisons: GRPO with TRL's own GRPOTrainer (extra `trl`), on the same prompts and reward.

    python recipes/chat/trl_grpo.py --model models/smollm2 --prompts nonpareil-chat/prompts/sums-train.jsonl \\
        --reward recipes/chat/verifier.py:solved --output_dir grpo --completions 1536

TRL's defaults hold but for what the comparison fixes (completions, their length, the temperature, LoRA's rank,
the optimizer's schedule) and what a CPU needs: no gradient checkpointing, micro-batches, bfloat16 products where
this machine gains from them. Writes the adapter, its tokenizer and spent.json, which `nonpareil compare` reads.
"""

import argparse
import importlib.util
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.models.memory import keep_freed_memory


def function_of(reward: str) -> Callable:
    """path/to/file.py:function."""
    path, name = reward.rsplit(":", 1)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


class Counted(GRPOTrainer):
    """TRL's trainer, whose tokens are counted: drawn, and trained on (prompts included, each time anew)."""

    tokens_drawn = tokens_trained = 0

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        self.tokens_drawn += int(output["completion_mask"].sum())
        return output

    def _compute_loss(self, model, inputs):
        self.tokens_trained += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return super()._compute_loss(model, inputs)


class StepClock(TrainerCallback):
    """Seconds between each step's beginning and its end, drawing and optimizer included."""

    seconds = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="JSON lines with `prompt` and the reward's columns")
    parser.add_argument("--reward", required=True, help="path/to/file.py:function")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--completions", type=int, required=True, help="to draw in all")
    parser.add_argument("--batch_size", type=int, default=64, help="completions of a step")
    parser.add_argument("--micro_batch", type=int, default=16, help="completions of a pass")
    parser.add_argument("--num_generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--max_completion_length", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--warmup_steps", type=int, default=0)
    parser.add_argument("--beta", type=float, default=0.0, help="TRL's default: no KL penalty")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_alpha", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> GRPOConfig:
    """The script's flags as TRL's."""
    device = best_device()
    return GRPOConfig(
        output_dir=str(args.output_dir),
        seed=args.seed,
        max_steps=args.completions // args.batch_size,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.batch_size // args.micro_batch,
        num_generations=args.num_generations,
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        beta=args.beta,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=args.warmup_steps,
        bf16=fast_dtype(device) is torch.bfloat16,
        gradient_checkpointing=False,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        save_strategy="no",
        logging_steps=4,
        disable_tqdm=True,
        report_to="none",
    )


def main() -> None:
    args = arguments()
    keep_freed_memory()
    clock = StepClock()
    lora = LoraConfig(
        r=args.lora_r, lora_alpha=args.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = Counted(
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        reward_funcs=function_of(args.reward),
        args=settings(args),
        train_dataset=load_dataset("json", data_files=args.prompts, split="train"),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=lora,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model()
    on_gpu = torch.cuda.is_available()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spent = {
        "completions_drawn": trainer.state.global_step * args.batch_size,
        "tokens_drawn": trainer.tokens_drawn,
        "tokens_trained": trainer.tokens_trained,
        "seconds": clock.seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak,
        "steps": trainer.state.global_step,
    }
    (args.output_dir / "spent.json").write_text(json.dumps(spent, indent=2) + "\n")
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
