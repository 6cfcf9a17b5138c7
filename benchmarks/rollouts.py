"""Groups drawn and scored a second: nonpareil against `model.generate` and a plain scoring loop.

    python benchmarks/rollouts.py [--rounds 5] [--groups 32] [--m 16] [--write benchmarks/results/rollouts.json]

Both sides have the same model, dtype, prompts, m and number of new tokens, and take turns within one run:
A B A B ... The figure is the median of the ratios of neighbouring turns, with their range. The peer calls
`generate(num_return_sequences=m)` for a batch of prompts, decodes, and scores one group at a time.
The models are the embedded demo's, with the policy's window widened so that long prompts fit; what it writes
out there does not matter here.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import nonpareil
from nonpareil.assets import demo_path
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.devices import best_device, fast_dtype
from nonpareil.models.memory import keep_freed_memory
from nonpareil.records import Group, Prompt, SamplingParams, ScoreRequest
from nonpareil.rewards import RewardModel

WINDOW = 1024


class Peer:
    """What a user writes in an afternoon, done with care: batched, inference mode, the same dtype."""

    def __init__(self, model, tokenizer, reward_model, new_tokens, m, rows):
        self.model, self.tokenizer, self.reward_model = model, tokenizer, reward_model
        self.new_tokens, self.m, self.rows = new_tokens, m, rows

    @torch.inference_mode()
    def run(self, prompts: list[Prompt]) -> int:
        count = 0
        size = max(1, self.rows // self.m)
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            width = max(len(p.token_ids) for p in batch)
            ids = torch.tensor([[1] * (width - len(p.token_ids)) + p.token_ids for p in batch])
            mask = torch.tensor([[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in batch])
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                do_sample=True,
                top_k=0,
                num_return_sequences=self.m,
                max_new_tokens=self.new_tokens,
                pad_token_id=1,
            )
            texts = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
            for i, prompt in enumerate(batch):
                full = [prompt.prompt + text for text in texts[i * self.m : (i + 1) * self.m]]
                inputs = self.tokenizer(full, return_tensors="pt", padding=True).to(self.model.device)
                count += len(self.reward_model(**inputs).logits[:, 0].tolist())
        return count


class Ours:
    """The engine and the reward model of the library, as `nonpareil sample` uses them."""

    def __init__(self, model, tokenizer, reward, new_tokens, m):
        self.engine = TransformersEngine(model, tokenizer)
        self.reward, self.new_tokens, self.m, self.turn = reward, new_tokens, m, 0

    def run(self, prompts: list[Prompt]) -> int:
        self.turn += 1
        sampling = SamplingParams(self.new_tokens, seed=self.turn)
        draws = self.engine.draw(prompts, self.m, sampling)
        groups = [Group.of(p, d) for p, d in zip(prompts, draws, strict=True)]
        return len(self.reward.score(ScoreRequest.of(groups)).values)


def random_prompts(tokenizer, length: int, count: int) -> list[Prompt]:
    """Prompts of exactly `length` tokens; random words will do for a timing."""
    generator = torch.Generator().manual_seed(length)
    rows = torch.randint(300, 8000, (count, length), generator=generator).tolist()
    return [Prompt(f"bench-{length}-{i}", tokenizer.decode(ids), ids) for i, ids in enumerate(rows)]


def seconds(side, prompts: list[Prompt]) -> float:
    start = time.perf_counter()
    count = side.run(prompts)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    assert count == len(prompts) * side.m
    return time.perf_counter() - start


def measure(model, tokenizer, reward, length: int, new_tokens: int, args) -> dict:
    prompts = random_prompts(tokenizer, length, args.groups)
    ours = Ours(model, tokenizer, reward, new_tokens, args.m)
    peer = Peer(model, tokenizer, args.reward_model, new_tokens, args.m, args.peer_rows)
    seconds(ours, prompts[:4]), seconds(peer, prompts[:4])
    pairs = [(seconds(ours, prompts), seconds(peer, prompts)) for _ in range(args.rounds)]
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    return {
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "m": args.m,
        "groups": args.groups,
        "peer_rows": args.peer_rows,
        "groups_per_second": round(args.groups / statistics.median(mine for mine, _ in pairs), 2),
        "peer_groups_per_second": round(args.groups / statistics.median(theirs for _, theirs in pairs), 2),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--peer_rows", type=int, default=128, help="completions in one batch of the peer")
    parser.add_argument("--new_tokens", type=int, default=40)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    keep_freed_memory()  # for both sides: they share the process
    device = best_device()
    dtype = fast_dtype(device)
    tokenizer = AutoTokenizer.from_pretrained(demo_path("policy"))
    model = AutoModelForCausalLM.from_pretrained(
        demo_path("policy"), dtype=dtype, max_position_embeddings=WINDOW
    )
    model.to(device).eval()
    args.reward_model = AutoModelForSequenceClassification.from_pretrained(
        demo_path("reward"), dtype=dtype, max_position_embeddings=WINDOW
    )
    args.reward_model.to(device).eval()
    reward = RewardModel(
        args.reward_model, AutoTokenizer.from_pretrained(demo_path("reward")), max_length=WINDOW
    )
    result = {
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "versions": {
            "nonpareil": nonpareil.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "rounds": args.rounds,
        "runs": [],
    }
    for length in (8, 256):
        result["runs"].append(measure(model, tokenizer, reward, length, args.new_tokens, args))
        print(json.dumps(result["runs"][-1]))
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
