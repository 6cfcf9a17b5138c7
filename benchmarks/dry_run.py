"""What `distill --dry_run` foretells of memory and seconds, beside what a short training then takes, on the CPU.

    python benchmarks/dry_run.py                      the table of docs/memory.md (minutes)
    python benchmarks/dry_run.py --smoke              seconds; a tiny model, figures of no meaning

J-BOND on a model of Llama's shape with random weights, float32: all weights, LoRA, and
both with gradient checkpointing.
Each case is two processes of the command: `--dry_run true`, then a training of a few steps without evaluation.
Memory is the kernel's high-water mark of that training's resident set, over that of the same training of a model of
nearly no weights, which is what libraries take. Seconds are of a step, the mean of all but the first; foretold are
the estimated hours over the steps. Both are of the processor, on one thread, so that what else runs counts little.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODEL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LORA = ["--use_peft", "true", "--lora_r", "16", "--lora_target_modules", "all-linear"]
CASES: dict[str, list[str]] = {
    "all weights": [],
    "all weights, gradient_checkpointing": ["--gradient_checkpointing", "true"],
    "LoRA": LORA,
    "LoRA, gradient_checkpointing": [*LORA, "--gradient_checkpointing", "true"],
}
VOCABULARY, PROMPTS, PROMPT_TOKENS, COMPLETION_TOKENS, STEPS = 4096, 3, 40, 40, 2
MIB = 2**20
REWARD = "def length(completions, **columns):\n    return [float(len(text)) for text in completions]\n"
RUN = """
import sys, time
time.perf_counter = time.process_time
from nonpareil.cli.main import main
status = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
sys.exit(status)
"""


def write_inputs(folder: Path, shape: dict[str, int]) -> None:
    """A model, its tokenizer of one word per token, prompts, and a reward."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=1024, **ends, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    own = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="w1", eos_token="w2", pad_token="w3")
    own.save_pretrained(folder / "model")
    rows = [" ".join(f"w{4 + (7 * i + j) % 900}" for j in range(PROMPT_TOKENS)) for i in range(4 * PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)


def command(folder: Path, name: str, *further: str) -> tuple[list[str], int]:
    """Lines of stdout of `nonpareil distill`, and the peak of its resident set in bytes."""
    settings = {
        "model_name_or_path": folder / "model",
        "dataset_name": folder / "prompts.jsonl",
        "reward_funcs": f"{folder}/reward.py:length",
        "output_dir": folder / name,
        "method": "jbond",
        "max_completion_length": COMPLETION_TOKENS,
        "per_device_train_batch_size": PROMPTS,
        "max_steps": STEPS,
        "logging_steps": 1,
        "evaluate_after": "false",
        "bf16": "false",
        "use_cpu": "true",
        "report_to": "none",
        "save_strategy": "no",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    ran = subprocess.run(
        [sys.executable, "-c", RUN, "distill", "--json", *words, *further],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    *lines, last = ran.stdout.strip().splitlines()
    return lines, 1024 * int(last.split()[1])


def measured(folder: Path, name: str, flags: list[str]) -> tuple[float, int]:
    """Seconds of a step, and the peak in bytes, of a training."""
    _, peak = command(folder, name, *flags)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    times = [step["step_time"] for step in map(json.loads, lines) if "step_time" in step]
    return sum(times[1:]) / len(times[1:]), peak


def case(folder: Path, label: str, flags: list[str], libraries: int) -> dict[str, Any]:
    """One row of the table."""
    name = label.replace(" ", "-").replace(",", "")
    lines, _ = command(folder, name, *flags, "--dry_run", "true")
    plan = json.loads(lines[-1])
    seconds, peak = measured(folder, name, flags)
    foretold = plan["speed"]["estimated_hours"]["total"] * 3600 / plan["steps"]
    memory = {part: round(value * 1024) for part, value in plan["memory_gib"].items()}
    return {
        "case": label,
        "parameters": plan["parameters"],
        "foretold_mib": memory,
        "measured_mib": round((peak - libraries) / MIB),
        "memory": round(memory["total"] * MIB / (peak - libraries), 2),
        "foretold_seconds": round(foretold, 2),
        "measured_seconds": round(seconds, 2),
        "seconds": round(foretold / seconds, 2),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = [
        "",
        "parameters",
        "MiB foretold",
        "MiB measured",
        "ratio",
        "s a step foretold",
        "measured",
        "ratio",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        parts = row["foretold_mib"]
        passing = [parts[name] for name in ("activations", "logits", "cache")]
        held = parts["total"] - sum(passing)
        lines.append(
            [
                row["case"],
                f"{row['parameters'] / 1e6:.0f}M",
                f"{held} + {' + '.join(map(str, passing))}",
                str(row["measured_mib"]),
                f"{row['memory']:.2f}",
                f"{row['foretold_seconds']:.2f}",
                f"{row['measured_seconds']:.2f}",
                f"{row['seconds']:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, and print the rows as JSON lines, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny model")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder, empty = Path(made, "case"), Path(made, "empty")
        write_inputs(folder, TINY if options.smoke else MODEL)
        write_inputs(empty, TINY)
        libraries = measured(empty, "libraries", [])[1]
        for label in options.cases:
            rows.append(case(folder, label, CASES[label], libraries))
            print(json.dumps(rows[-1]), flush=True)
    print(
        f"\n{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, ",
        end="",
    )
    print(f"load {os.getloadavg()[0]:.1f}, libraries {libraries // MIB} MiB\n\n{table(rows)}")


if __name__ == "__main__":
    main()
