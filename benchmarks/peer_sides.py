"""The sides that `peers.py` puts next to each other: each is a process that does one turn whenever it is told to.

    python benchmarks/peer_sides.py draw-nonpareil --policy FOLDER --shape 10M ...     one turn per line on stdin

A turn is one batch of groups drawn, or one training step. Its line on stdout gives the CPU seconds of the whole
process, what was produced in them, and the peak of its memory. Every turn has prompts of its own, so that no
side's cache knows them; a step's first turn compiles and allocates, and the caller leaves it out.
"""

import argparse
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW_PER_PROMPT = 3
"""Completions of each prompt in a training step: J-BOND's own number, one of the policy and two of the anchor."""


class Turns:
    """Waits for a line before each turn, and tells what it cost after it."""

    def __init__(self) -> None:
        self.done = -1

    def begin(self) -> bool:
        """Whether there is another turn; returns once it may start."""
        if self.done < 0:
            _say({"ready": True})
        self.done += 1
        if not sys.stdin.readline():
            return False
        self._start = time.process_time()
        return True

    def end(self, count: int) -> None:
        """`count`: tokens drawn, or completions trained on."""
        seconds = time.process_time() - self._start
        _say({"seconds": seconds, "count": count, "peak_gib": _peak_gib()})


def _peak_gib() -> float:
    """Of this process; getrusage would count what its parent held when it was started."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def _say(message: dict[str, Any]) -> None:
    print("@" + json.dumps(message), flush=True)


def token_ids(args: argparse.Namespace, turn: int, count: int) -> list[list[int]]:
    """Prompts of uneven length, other ones each turn."""
    draw = random.Random(f"{args.seed}/{turn}")
    shortest, longest = args.prompt_tokens
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return [[draw.randrange(2, args.vocabulary) for _ in range(length)] for length in lengths]


def draw_nonpareil(args: argparse.Namespace, turns: Turns) -> None:
    """The engine that `nonpareil sample` takes by default."""
    from nonpareil.engines.transformers import TransformersEngine

    model, tokenizer = _model(args)
    _draw_with(TransformersEngine(model, tokenizer), args, turns)


def draw_nonpareil_vllm(args: argparse.Namespace, turns: Turns) -> None:
    """`--engine vllm`."""
    from transformers import AutoTokenizer

    from nonpareil.engines.vllm.engine import VLLMEngine

    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    engine = VLLMEngine(args.policy, tokenizer, dtype="bfloat16", end_ids=frozenset(), max_model_len=1024)
    _draw_with(engine, args, turns)


def _draw_with(engine: Any, args: argparse.Namespace, turns: Turns) -> None:
    from nonpareil.records import Prompt, SamplingParams

    sampling = SamplingParams(max_completion_length=args.new_tokens)
    while turns.begin():
        ids = token_ids(args, turns.done, args.groups)
        prompts = [Prompt(f"{turns.done}/{i}", "", row) for i, row in enumerate(ids)]
        drawn = engine.draw(prompts, args.m, sampling)
        turns.end(sum(len(row) for draws in drawn for row in draws.completion_token_ids))


def draw_generate(args: argparse.Namespace, turns: Turns) -> None:
    """transformers' `generate(num_return_sequences=m)`, all groups in one batch, as a careful script would."""
    import torch

    model, _ = _model(args)
    while turns.begin():
        rows = token_ids(args, turns.done, args.groups)
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            drawn = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=args.m,
                max_new_tokens=args.new_tokens,
                pad_token_id=0,
            )
        turns.end((drawn.shape[1] - width) * len(drawn))


def draw_vllm(args: argparse.Namespace, turns: Turns) -> None:
    """vLLM alone, compiled: one request per prompt, `n=m`, no seed, no log-probs, no text."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that this process pays for all of it
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        args.policy,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=256,
        seed=args.seed,
        disable_log_stats=True,
    )
    sampling = SamplingParams(
        n=args.m, temperature=1.0, max_tokens=args.new_tokens, ignore_eos=True, detokenize=False
    )
    while turns.begin():
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in token_ids(args, turns.done, args.groups)]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        turns.end(sum(len(one.token_ids) for output in outputs for one in output.outputs))


def step_nonpareil(args: argparse.Namespace, turns: Turns, method: str) -> None:
    """A step as `nonpareil distill` makes it."""
    from nonpareil import DistillationConfig, DistillationTrainer
    from nonpareil.methods import JBOND, RLOO
    from nonpareil.models.loading import load_policy
    from nonpareil.records import Prompt
    from nonpareil.rewards import RewardModel, load_rewards

    config = DistillationConfig(
        output_dir=args.work,
        max_steps=args.steps,
        per_device_train_batch_size=args.groups,
        max_completion_length=args.new_tokens,
        method={"jbond": JBOND(), "rloo": RLOO(num_generations=NEW_PER_PROMPT)}[method],
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_completions=False,
        logging_steps=10**6,
        seed=args.seed,
    )
    policy, tokenizer = load_policy(args.policy, dtype=config.policy_dtype())
    ids = token_ids(args, 0, args.groups * args.steps)
    prompts = [Prompt(str(i), " ".join(f"w{token}" for token in row), row) for i, row in enumerate(ids)]
    reward = load_rewards([RewardModel(args.reward)]) if args.reward else load_rewards([length_reward])
    trainer = DistillationTrainer(policy, reward, config, prompts, processing_class=tokenizer)
    _train(trainer, args, turns)


def step_trl(args: argparse.Namespace, turns: Turns, trainer: str, beta: float | None) -> None:
    """TRL's own trainer with the settings that were quickest for it on a CPU; docs/benchmarks.md has the others."""
    import trl
    from datasets import Dataset

    completions = args.groups * NEW_PER_PROMPT
    config = getattr(trl, f"{trainer}Config")(
        output_dir=args.work,
        max_steps=args.steps,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=completions // args.micro_batch,
        num_generations=NEW_PER_PROMPT,
        max_completion_length=args.new_tokens,
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        seed=args.seed,
        **({} if beta is None else {"beta": beta}),
    )
    rows = token_ids(args, 0, args.groups * args.steps)
    dataset = Dataset.from_dict({"prompt": [" ".join(f"w{token}" for token in row) for row in rows]})
    reward = _bfloat16_reward(args.reward) if args.reward else length_reward
    _train(getattr(trl, f"{trainer}Trainer")(args.policy, reward, config, dataset), args, turns)


def _bfloat16_reward(folder: str) -> Any:
    """As our side scores; TRL itself would load it in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.bfloat16)


def length_reward(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that costs nothing: how often a digit comes up."""
    return [float(str(completion).count("7")) for completion in completions]


def _train(trainer: Any, args: argparse.Namespace, turns: Turns) -> None:
    from transformers import TrainerCallback

    class ByTurns(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            if not turns.begin():
                sys.stdout.flush()
                os._exit(0)  # nothing of a benchmark's training is wanted

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            turns.end(args.groups * NEW_PER_PROMPT)

    trainer.add_callback(ByTurns())
    trainer.train()


def _model(args: argparse.Namespace) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(args.policy, dtype=torch.bfloat16).eval()
    return model, AutoTokenizer.from_pretrained(args.policy)


SIDES: dict[str, tuple[str, Callable[[argparse.Namespace, Turns], None]]] = {
    "draw-nonpareil": ("torch", draw_nonpareil),
    "draw-nonpareil-vllm": ("vllm", draw_nonpareil_vllm),
    "draw-generate": ("transformers", draw_generate),
    "draw-vllm": ("vllm", draw_vllm),
    "step-jbond": ("torch", lambda args, turns: step_nonpareil(args, turns, "jbond")),
    "step-rloo": ("torch", lambda args, turns: step_nonpareil(args, turns, "rloo")),
    "step-trl-rloo": ("trl", lambda args, turns: step_trl(args, turns, "RLOO", None)),
    "step-trl-rloo-beta0": ("trl", lambda args, turns: step_trl(args, turns, "RLOO", 0.0)),
    "step-trl-grpo": ("trl", lambda args, turns: step_trl(args, turns, "GRPO", None)),
}
"""What each side needs to be installed, and what it does."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward", default="")
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--work", required=True, help="an empty folder of this side's own")
    parser.add_argument("--prompt_tokens", type=int, nargs=2, required=True)
    parser.add_argument("--new_tokens", type=int, required=True)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--micro_batch", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    needed, side = SIDES[args.side]
    if importlib.util.find_spec(needed) is None:
        _say({"missing": f"{needed} is not installed"})
        return
    if needed != "vllm":
        import torch

        from nonpareil.models.memory import keep_freed_memory

        torch.set_num_threads(1)
        keep_freed_memory()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    side(args, Turns())


if __name__ == "__main__":
    main()
