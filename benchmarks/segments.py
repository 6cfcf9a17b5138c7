"""What search while drawing is worth: tokens drawn and scored against win rate and reward, on the embedded demo.

    python benchmarks/segments.py [--prompts 32] [--seeds 2] [--references 48] [--output figures.json]

Best-of-N, speculative rejection, trees and blocks draw from the demo's policy, completions of 40 tokens; partial
completions are scored by the demo's reward model as it is. Win rates are against single draws of the policy with a
seed of their own, ties one half. Best-of-N for every N is the mean over all subsets of one group of 32, by weights
of order statistics. Intervals: bootstrap over prompts, of means over seeds. The second table is of those groups of
32: how partial rewards go with final ones (Spearman's, in each group), how often the best completion is among the
half that is kept, and how often the best of that half wins.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonpareil import load_prompts, load_rewards, tokenize_prompts
from nonpareil.assets import demo_path
from nonpareil.engines.segments import SegmentingEngine
from nonpareil.maths.bootstrap import Scale, bootstrap_interval
from nonpareil.maths.order_statistics import rank_weights
from nonpareil.models.loading import load_policy, load_tokenizer
from nonpareil.records import Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.segments.driver import Found, search
from nonpareil.rollouts.segments.schedule import Schedule, best_of_n, blockwise, speculative_rejection, tree

LENGTH = 40
N = 32
LENGTHS = [5, 10, 20, 30]
SCHEDULES: dict[str, Schedule] = {
    "speculative rejection, 16 (at 10, 20)": speculative_rejection(16, 0.5, [10, 20]),
    "speculative rejection, 32 (at 10, 20)": speculative_rejection(32, 0.5, [10, 20]),
    "speculative rejection, 32 (at 20, 30)": speculative_rejection(32, 0.5, [20, 30]),
    "tree, 8 (at 10, 20), 4 children": tree(8, 4, [10, 20]),
    "tree, 16 (at 10, 20), 4 children": tree(16, 4, [10, 20]),
    "tree, 16 (at 10, 20, 30), 2 children": tree(16, 2, [10, 20, 30]),
    "blocks of 20, 8": blockwise(8, 20, LENGTH),
    "blocks of 10, 4": blockwise(4, 10, LENGTH),
    "blocks of 10, 8": blockwise(8, 10, LENGTH),
    "blocks of 10, 16": blockwise(16, 10, LENGTH),
    "blocks of 5, 8": blockwise(8, 5, LENGTH),
}


class Bench:
    """The demo's models, its prompts, and what single draws are worth there."""

    def __init__(self, prompts: int, references: int) -> None:
        """Draws the references."""
        policy, tokenizer = str(demo_path("policy")), load_tokenizer(str(demo_path("policy")))
        self.engine = SegmentingEngine(load_policy(policy, dtype="float32")[0], tokenizer)
        self.reward: CombinedReward = load_rewards(str(demo_path("reward")))
        source = str(demo_path("prompts") / "test.parquet")
        self.prompts: list[Prompt] = tokenize_prompts(load_prompts(source, limit=prompts), tokenizer)
        self.references = rewards_of(self.found(best_of_n(references), seed=1000))

    def found(self, schedule: Schedule, seed: int) -> list[Found]:
        sampling = SamplingParams(max_completion_length=LENGTH, seed=seed)
        return list(search(self.prompts, self.engine, self.reward, sampling, schedule))

    def win_rates(self, rewards: Tensor) -> Tensor:
        """Of each of `[b, m]` rewards against the references of its prompt."""
        against = self.references[:, None, :]
        return (rewards[..., None] > against).double().mean(-1) + (
            rewards[..., None] == against
        ).double().mean(-1) / 2


def rewards_of(found: Sequence[Found]) -> Tensor:
    """`[b, m]`, of all candidates."""
    return torch.tensor([one.candidates.rewards for one in found], dtype=torch.float64)


def row(name: str, win: Tensor, reward: Tensor, drawn: float, scored: float, base: Tensor) -> dict[str, Any]:
    """`[b, s]` figures of prompts and seeds; tokens per prompt. `base`: the win rates of `best_of_8`."""

    def interval(values: Tensor, scale: Scale = "real") -> dict[str, Any]:
        return asdict(bootstrap_interval(values.mean(1)[:, None], scale=scale))

    rate, of_rewards = interval(win, "share"), interval(reward)
    cost = f"{drawn:>7.0f} {scored:>7.0f}"
    print(
        f"{name:<40} {cost} {shown(rate)}  {shown(of_rewards)}  {shown(interval(win - base), '+')}",
        flush=True,
    )
    return {
        "name": name,
        "tokens_drawn": drawn,
        "tokens_scored": scored,
        "win_rate": rate,
        "reward": of_rewards,
        "win_rate_beyond_best_of_8": interval(win - base),
    }


def shown(interval: dict[str, Any], sign: str = "") -> str:
    return f"{interval['estimate']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("prompts", 32), ("seeds", 2), ("references", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    bench = Bench(args.prompts, args.references)
    groups = [bench.found(speculative_rejection(N, 0.0, LENGTHS), seed) for seed in range(args.seeds)]
    found = {name: [bench.found(one, s) for s in range(args.seeds)] for name, one in SCHEDULES.items()}
    rows, partial = tables(bench, groups, found)
    spent = time.process_time() - begun
    print(f"{spent:.0f} CPU seconds")
    if args.output:
        figures = {"date": date.today().isoformat(), **vars(args), "cpu_seconds": spent}
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({**figures, "rows": rows, "partial_rewards": partial}, file, indent=1)


def tables(
    bench: Bench, groups: Sequence[list[Found]], found: dict[str, list[list[Found]]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    head = f"{'':<40} {'drawn':>7} {'scored':>7} win rate{'':<13} reward{'':<17}over best-of-8"
    print(head)
    rewards = torch.stack([rewards_of(one) for one in groups], 1)  # [b, s, m]
    wins = torch.stack([bench.win_rates(each) for each in rewards.unbind(1)], 1)
    drawn = sum(one.tokens_drawn for group in groups for one in group) / len(groups) / len(groups[0])
    weights = {n: rank_weights(rewards.flatten(0, 1), n).view_as(rewards) for n in (1, 2, 4, 8, 16, 32)}
    base = (weights[8] * wins).sum(-1)
    rows = [
        row(f"best-of-{n}", (w * wins).sum(-1), (w * rewards).sum(-1), *(drawn * n / N,) * 2, base)
        for n, w in weights.items()
    ]
    for name, of_seeds in found.items():
        best = torch.stack([best_rewards(one) for one in of_seeds], 1)  # [b, s]
        each = [one for group in of_seeds for one in group]
        tokens = sum(one.tokens_drawn for one in each), sum(one.tokens_scored for one in each)
        rows.append(row(name, bench.win_rates(best), best, *(t / len(each) for t in tokens), base))
    return rows, [of_length(i, length, bench, groups) for i, length in enumerate(LENGTHS)]


def best_rewards(found: Sequence[Found]) -> Tensor:
    """`[b]`, of the answers."""
    return torch.tensor([one.candidates.rewards[one.best] for one in found], dtype=torch.float64)


def partials(found: Found, i: int) -> list[float]:
    """Each candidate's reward at the i-th length; of one that had ended, its own."""
    rewards = found.candidates.rewards
    return [
        known[i] if i < len(known) else final
        for known, final in zip(found.partial_rewards, rewards, strict=True)
    ]


def of_length(i: int, length: int, bench: Bench, groups: Sequence[list[Found]]) -> dict[str, Any]:
    """What the partial rewards at one length tell of the final ones, over all groups."""
    correlations, kept_best, chosen = [], [], []
    for found in groups:
        final = rewards_of(found)
        partial = torch.tensor([partials(one, i) for one in found], dtype=torch.float64)
        a, b = (x.argsort(-1).argsort(-1).numpy() for x in (partial, final))
        correlations += [float(np.corrcoef(one, other)[0, 1]) for one, other in zip(a, b, strict=True)]
        half = partial.topk(N // 2, -1).indices
        kept_best += (half == final.argmax(-1, keepdim=True)).any(-1).double().tolist()
        best = final.gather(-1, half).amax(-1, keepdim=True)
        chosen += bench.win_rates(best)[:, 0].tolist()
    figures = {
        "length": length,
        "rank_correlation": float(np.mean(correlations)),
        "rank_correlation_sd": float(np.std(correlations, ddof=1)),
        "best_is_kept": float(np.mean(kept_best)),
        "win_rate_of_half": float(np.mean(chosen)),
    }
    print(" ".join(f"{name}={value:.3f}" for name, value in figures.items()), flush=True)
    return figures


if __name__ == "__main__":
    main()
