"""Peak memory of J-BOND on the CPU, full weights against LoRA, beside the formula of `distill --dry_run`.

    python benchmarks/memory.py --write benchmarks/results/memory-cpu.json     (minutes)
    python benchmarks/memory.py --table benchmarks/results/memory-cpu.json     prints the tables of docs/memory.md
    python benchmarks/memory.py --smoke                                        seconds; tiny model, prints only

A process a case. Bytes are of resident memory (the kernel's high-water mark, reset before each phase of a step)
over what stays when the last tensor is gone: libraries, and workspaces that oneDNN keeps for good (tens of MiB in
bfloat16; `kept_by_libraries`, over a training of a tiny model). The C allocator is told to map every block above
8 KiB and to unmap it when freed, so that resident memory follows live tensors; temporaries inside kernels count,
which torch's own counters would not see.

Activations are measured apart, in a process that holds the policy alone: forward and backward passes of a whole
token budget, gradients already there. The claim is that training's peak stays within what the formula says is held
and these activations.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = ["25M", "100M", "250M"]
BATCH = {"prompts": 2, "prompt_tokens": 64, "completion_tokens": 32, "max_tokens_per_batch": 384}
SEED = 0
MIB = 2**20
CHILD = {
    "MALLOC_MMAP_THRESHOLD_": str(2**13),
    "MALLOC_TRIM_THRESHOLD_": str(2**16),
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}
"""The allocator's behaviour; and one thread, since each one more has memory of its own."""


def status(name: str) -> int:
    """A line of /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def resident() -> int:
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def trained(size: str, lora: bool, bf16: bool, steps: int = 2) -> dict[str, Any]:
    """Most bytes of each phase of a real training, and what the formula says."""
    from step import Phases, make_config, make_trainer

    from nonpareil.commands.distill.dry_run import memory_estimate
    from nonpareil.commands.policies.local import LocalPolicy

    baseline = warmed_up(lora, bf16)
    with tempfile.TemporaryDirectory() as folder:
        options = {**BATCH, "lora": lora, "bf16": bf16, "seed": SEED, "use_cpu": True}
        trainer = make_trainer(size, Path(folder), steps=steps, **options)
        phases = Phases(trainer, lambda: None, reset_peak, peak)
        trainer.train()
        make_config(size, 128).save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
        estimate = memory_estimate(LocalPolicy(folder), trainer.args, trainer.method)
    peaks = dict(phases.peaks)
    del trainer, phases
    kept = resident_without_tensors() - baseline
    return {
        "parameters": estimate["parameters"],
        "trained_parameters": estimate["trained_parameters"],
        "formula": estimate["memory_bytes"],
        "kept_by_libraries": kept,
        "peak_bytes": {name: value - baseline - kept for name, value in peaks.items()},
        "peak": max(peaks.values()) - baseline - kept,
    }


def resident_without_tensors() -> int:
    """What stays when the last tensor is gone is the libraries': no tensor may be left."""
    import torch

    gc.collect()
    assert not any(isinstance(x, torch.Tensor) and x.numel() > 10**6 for x in gc.get_objects())
    return resident()


def warmed_up(lora: bool, bf16: bool) -> int:
    """Resident bytes after a training of a tiny model."""
    from step import Phases, make_trainer

    with tempfile.TemporaryDirectory() as folder:
        options = {**BATCH, "lora": lora, "bf16": bf16, "seed": SEED, "use_cpu": True}
        trainer = make_trainer("tiny", Path(folder), steps=2, **options)
        Phases(trainer, lambda: None, reset_peak, peak)
        trainer.train()
    del trainer
    return resident()


def alone(size: str, lora: bool, bf16: bool) -> dict[str, Any]:
    """Activations of the policy by itself: the peak of a pass there and back, less its weights and gradients."""
    import torch
    from step import LORA, make_model, make_prompts

    from nonpareil.models.adapters import add_policy_adapter, plain_model
    from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs, output_head_is_plain
    from nonpareil.training import DistillationConfig
    from nonpareil.training.step.accumulate import adapters_take_what_comes

    warmed_up(lora, bf16)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(output_dir=folder, bf16=bf16, use_cpu=True, **(LORA if lora else {}))
    width = BATCH["prompt_tokens"] + BATCH["completion_tokens"]
    model: Any = make_model(size, width, args.device, getattr(torch, args.policy_dtype()), SEED)
    policy = plain_model(add_policy_adapter(model, args.lora_config())) if lora else model
    held = sum(p.numel() * p.element_size() for p in policy.parameters())
    rows = BATCH["max_tokens_per_batch"] // width
    prompts = make_prompts(rows, BATCH["prompt_tokens"], model.config.vocab_size, SEED)
    completions = [p.token_ids for p in make_prompts(rows, BATCH["completion_tokens"], 500, SEED + 1)]
    sequences = TokenSequences([p.token_ids for p in prompts], completions)
    output_head_is_plain(policy)
    gradients = sum(p.numel() * 4 for p in policy.parameters() if p.requires_grad)
    for _ in range(2):  # the first one leaves the gradients
        reset_peak()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), adapters_take_what_comes(policy):
            loss = completion_token_logprobs(policy.train(), sequences).sum()
        loss.backward()
        del loss
    backward = peak() - held - gradients
    del policy, model
    kept = resident_without_tensors()
    return {"activations": backward - kept}


def shards(size: str, folder: Path) -> None:
    """Under torchrun: bytes that each process holds of a sharded training, beside the formula's."""
    from step import make_config, make_trainer

    from nonpareil.commands.distill.dry_run import memory_estimate
    from nonpareil.models.distributed import end_processes, gather_shares, num_processes, process_index
    from nonpareil.models.sharding import local

    sharded = int(os.environ["WORLD_SIZE"]) > 1
    options = {**BATCH, "prompts": BATCH["prompts"] // int(os.environ["WORLD_SIZE"]), "use_cpu": True}
    trainer = make_trainer(
        size, folder / "out", steps=1, lora=False, bf16=False, seed=SEED, shard_weights=sharded, **options
    )
    trainer.train()

    def size_of(tensors: Any) -> int:
        return sum(local(t).numel() * t.element_size() for t in tensors)

    moments = [v for s in trainer.optimizer.state.values() for v in s.values() if v.dim()]
    held = {
        "weights": size_of(trainer.model.parameters()),
        "anchor": size_of(trainer.anchor.weights().values()),
        "optimizer": size_of(moments),
        "working_copy": size_of(trainer.step_sampler.actors.working.model.parameters()),
    }
    everywhere = gather_shares([held])
    if process_index() == 0:
        make_config(size, 128).save_pretrained(folder)
        told = memory_estimate(str(folder), None, trainer.args, trainer.method)["memory_bytes"]
        result = {"processes": num_processes(), "held": everywhere, "formula": {k: told[k] for k in held}}
        (folder / "held.json").write_text(json.dumps(result))
    end_processes()


def child(*arguments: str, launcher: tuple[str, ...] = ()) -> str:
    """A fresh process; its last line."""
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *arguments],
        env={**os.environ, **CHILD},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def case(size: str, lora: bool, bf16: bool) -> dict[str, Any]:
    settings = {"size": size, "lora": lora, "bf16": bf16}
    result = {**settings, **json.loads(child("--case", json.dumps({**settings, "what": "trained"})))}
    result |= json.loads(child("--case", json.dumps({**settings, "what": "alone"})))
    result["bound"] = result["formula"]["total"] + result["activations"]
    result["peak_over_bound"] = round(result["peak"] / result["bound"], 4)
    return result


def sharded(size: str, processes: int) -> dict[str, Any]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    with tempfile.TemporaryDirectory() as folder:
        child("--shards", size, "--folder", folder, launcher=launcher)
        return json.loads((Path(folder) / "held.json").read_text())


def about() -> dict[str, Any]:
    import torch
    import transformers

    import nonpareil

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "an unnamed CPU")
    versions = {"nonpareil": nonpareil.__version__, "torch": torch.__version__}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores of {model} ({platform.machine()}), one thread a process",
        "versions": {**versions, "transformers": transformers.__version__},
        "batch": BATCH,
        "seed": SEED,
    }


def tables(result: dict[str, Any]) -> str:
    """Markdown, MiB."""

    def mib(value: float) -> str:
        return f"{value / MIB:.0f}"

    lines = [
        "| parameters | trained | dtype | held (formula) | activations | bound | measured peak | of bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in result["cases"]:
        cells = [
            f"{run['parameters'] / 1e6:.0f}M",
            f"LoRA, {run['trained_parameters'] / 1e6:.1f}M" if run["lora"] else "all",
            "bfloat16" if run["bf16"] else "float32",
            mib(run["formula"]["total"]),
            mib(run["activations"]),
            mib(run["bound"]),
            f"**{mib(run['peak'])}**",
            f"{run['peak_over_bound']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    names = list(result["shards"][0]["formula"])
    lines += ["", "| processes | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for run in result["shards"]:
        most = {name: max(held[name] for held in run["held"]) for name in names}
        lines.append(f"| {run['processes']} | " + " | ".join(mib(most[name]) for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=SIZES)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one dtype")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--table", type=Path, help="print the tables of a result and measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--shards", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        settings = json.loads(args.case)
        measure = {"trained": trained, "alone": alone}[settings.pop("what")]
        print(json.dumps(measure(**settings)))
        return
    if args.shards:
        shards(args.shards, args.folder)
        return
    if args.table:
        print(tables(json.loads(args.table.read_text())))
        return
    sizes = ["tiny"] if args.smoke else args.sizes
    shards_of = sizes[0]
    result: dict[str, Any] = {**about(), "cases": []}
    result["shards"] = [{"size": shards_of, **sharded(shards_of, processes)} for processes in (1, 2)]
    for bf16 in (False,) if args.smoke else (False, True):
        for size in sizes:
            for lora in (False, True):
                result["cases"].append(case(size, lora, bf16))
                print(json.dumps(result["cases"][-1]), flush=True)
                if args.write:
                    args.write.write_text(json.dumps(result, indent=2) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
