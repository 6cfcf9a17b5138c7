"""What candidate next tokens cost: one pass for those of all positions, against a pass for each.

    python benchmarks/candidates.py [--completions 8] [--likeliest 32] [--from_tail 16] [--dtype bfloat16]

The embedded demo's policy and reward model, completions of 40 tokens drawn here. CPU seconds of one thread a
completion: choosing the candidates; the policy's states and the reward model's scores of all of them; the policy's
states by a pass over each candidate's whole text; and the matrix products of so many tokens (`products`), below
which no pass can come. Sides take turns; medians and ranges.
"""

import argparse
import statistics
import time
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import nn

from nonpareil import load_prompts, tokenize_prompts
from nonpareil.assets import demo_path
from nonpareil.engines.sampling import sample_keys
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.models.candidate_states import score_candidates
from nonpareil.models.candidates import choose_candidates
from nonpareil.models.loading import load_policy
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.memory import keep_freed_memory
from nonpareil.records import SamplingParams
from nonpareil.rewards.models.loading import keep_head_in_float32, load_classifier


def products(model: Any, tokens: int) -> None:
    """The body's linear layers, as many tokens through each."""
    for layer in model.base_model.modules():
        if isinstance(layer, nn.Linear):
            inputs = torch.empty(512, layer.in_features, dtype=layer.weight.dtype).normal_()
            for start in range(0, tokens, 512):
                layer(inputs[: tokens - start])


def separate(model: Any, prompt: list[int], completion: list[int], token_ids: torch.Tensor) -> None:
    for position, candidates in enumerate(token_ids):
        before = torch.tensor(prompt + completion[:position]).expand(len(candidates), -1)
        model.base_model(input_ids=torch.cat([before, candidates[:, None]], -1), use_cache=False)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("completions", 8), ("likeliest", 32), ("from_tail", 16), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()

    policy, tokenizer = load_policy(str(demo_path("policy")), dtype=args.dtype)
    classifier, _ = load_classifier(str(demo_path("reward")), None, getattr(torch, args.dtype), None)
    keep_head_in_float32(classifier)
    rows = load_prompts(str(demo_path("prompts") / "train.parquet"), limit=args.completions)
    prompts = tokenize_prompts(rows, tokenizer)
    engine = TransformersEngine(policy, tokenizer)
    engine.end_ids = frozenset()  # all of 40 tokens
    drawn = engine.draw(prompts, 1, SamplingParams(max_completion_length=40, seed=0))
    sequences = TokenSequences.of(prompts, drawn)
    keys = sample_keys("candidates", range(len(sequences)), seed=0)
    choose = partial(
        choose_candidates, policy, sequences, keys, likeliest=args.likeliest, from_tail=args.from_tail
    )
    ids, first = choose().token_ids, (sequences.prompt_ids[0], sequences.completion_ids[0])
    everyone, texts = len(sequences), sum(sequences.lengths()) // len(sequences)
    sides = {
        "choosing": (choose, everyone),
        "policy's states": (partial(score_candidates, policy, sequences, ids, nn.Identity()), everyone),
        "reward's scores": (
            partial(score_candidates, classifier, sequences, ids, classifier.score),
            everyone,
        ),
        "policy's states, a pass each": (partial(separate, policy, *first, ids[0]), 1),
        "products": (partial(products, policy, texts + 40 * ids.shape[-1]), 1),
    }
    seconds = defaultdict(list)
    for i in range(args.rounds + 1):
        for name, (side, completions) in sides.items():
            if "each" in name and i > 2:
                continue  # slow, and its range narrow
            start = time.process_time()
            side()
            if i:
                seconds[name].append((time.process_time() - start) / completions)
    print(f"{args.dtype}, {ids.shape[-1]} candidates at 40 positions, prompt and completion {texts} tokens")
    for name, values in seconds.items():
        print(f"{name:30} {statistics.median(values):8.4f} s  ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()
