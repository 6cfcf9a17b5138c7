"""What search while drawing is worth: tokens drawn and scored against win rate and reward, on a model of your own.

    python benchmarks/segments.py [--max_prompts 24] [--seeds 1] [--references 32] [--json figures.json]
    python benchmarks/segments.py --model my-chat-model --prompts prompts.jsonl --max_completion_length 48 \\
        --temperature 0.7 --reward_funcs rubric.py:length rubric.py:keyword --reward_weights 2 1.5

Without a model: the embedded demo, completions of 40 tokens. Best-of-N, speculative rejection, trees and blocks
draw from the policy, in float32, on CUDA where there is one; partial completions are scored by the rewards as
whole ones are. Win rates are against single draws of the policy with a seed of their own, ties one half.
Best-of-N for every N is the mean over all subsets of one group of 32, by weights of order statistics; between two N
it is the better of the two as often as the tokens allow. Intervals: bootstrap over prompts, of means over seeds.
The second table is of those groups of 32: how partial rewards go with final ones (Spearman's, in each group), how
often a completion of the highest reward is in the half that is kept, and how often the best of that half wins.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from nonpareil import load_prompts, load_rewards, tokenize_prompts
from nonpareil.assets import demo_path
from nonpareil.commands.policies.local import LocalPolicy
from nonpareil.engines.segments import SegmentingEngine
from nonpareil.maths.bootstrap import Scale, bootstrap_interval
from nonpareil.maths.counts import count_among
from nonpareil.maths.order_statistics import rank_weights
from nonpareil.models.devices import device_of
from nonpareil.records import Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.rollouts.segments.choice import best_places, tie_numbers
from nonpareil.rollouts.segments.driver import Found, search
from nonpareil.rollouts.segments.schedule import Schedule, best_of_n, blockwise, speculative_rejection, tree

N = 32
REFERENCE_SEED = 1000
EQUAL = ("drawn", "drawn_and_scored")


def lengths_of(length: int) -> list[int]:
    """Where the groups' completions are scored: an eighth, a quarter, a half and three quarters."""
    return [length // 8, length // 4, length // 2, 3 * length // 4]


def schedules_of(length: int) -> dict[str, Schedule]:
    eighth, quarter, half, three = lengths_of(length)
    return {
        f"speculative rejection, 16 (at {quarter}, {half})": speculative_rejection(16, 0.5, [quarter, half]),
        f"speculative rejection, 32 (at {quarter}, {half})": speculative_rejection(32, 0.5, [quarter, half]),
        f"speculative rejection, 32 (at {half}, {three})": speculative_rejection(32, 0.5, [half, three]),
        f"tree, 8 (at {quarter}, {half}), 4 children": tree(8, 4, [quarter, half]),
        f"tree, 16 (at {quarter}, {half}), 4 children": tree(16, 4, [quarter, half]),
        f"tree, 16 (at {quarter}, {half}, {three}), 2 children": tree(16, 2, [quarter, half, three]),
        f"blocks of {half}, 8": blockwise(8, half, length),
        f"blocks of {quarter}, 4": blockwise(4, quarter, length),
        f"blocks of {quarter}, 8": blockwise(8, quarter, length),
        f"blocks of {quarter}, 16": blockwise(16, quarter, length),
        f"blocks of {eighth}, 8": blockwise(8, eighth, length),
    }


class Bench:
    """Models, prompts, and what single draws are worth there."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Draws the references."""
        policy = LocalPolicy(args.model, dtype="float32")
        self.sampling = {
            "max_completion_length": args.max_completion_length,
            "temperature": args.temperature,
        }
        rows = load_prompts(args.prompts, limit=args.max_prompts)
        self.prompts: list[Prompt] = tokenize_prompts(rows, policy.tokenizer)
        policy.check(self.prompts, SamplingParams(**self.sampling))  # which says where completions end
        self.reward: CombinedReward = load_rewards(args.reward_funcs, weights=args.reward_weights)
        self.engine = SegmentingEngine(
            policy.load(), policy.tokenizer, max_tokens_per_batch=args.max_tokens_per_batch
        )
        found = self.found(best_of_n(args.references), REFERENCE_SEED, "references")
        self.references = rewards_of(found)

    def found(self, schedule: Schedule, seed: int, name: str) -> list[Found]:
        begun = time.perf_counter()
        sampling = SamplingParams(seed=seed, **self.sampling)
        found = list(search(self.prompts, self.engine, self.reward, sampling, schedule))
        print(f"{name}, seed {seed}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        if failed := {reason for one in found for reason in one.failures}:
            sys.exit(f"a reward is null, and win rates need every one: {'; '.join(sorted(failed)[:3])}")
        return found

    def win_rates(self, rewards: Tensor) -> Tensor:
        """Of each of `[b, m]` rewards against the references of its prompt."""
        against = self.references[:, None, :]
        return (rewards[..., None] > against).double().mean(-1) + (
            rewards[..., None] == against
        ).double().mean(-1) / 2


def rewards_of(found: Sequence[Found]) -> Tensor:
    """`[b, m]`, of all candidates."""
    return torch.tensor([one.candidates.rewards for one in found], dtype=torch.float64)


class Curve:
    """Best-of-N for every N up to 32, from groups of 32 of each seed."""

    def __init__(self, bench: Bench, groups: Sequence[list[Found]]) -> None:
        self.rewards = torch.stack([rewards_of(one) for one in groups], 1)  # [b, s, m]
        wins = torch.stack([bench.win_rates(each) for each in self.rewards.unbind(1)], 1)
        flat = self.rewards.flatten(0, 1)
        weights = {n: rank_weights(flat, n).view_as(self.rewards) for n in range(1, N + 1)}
        self.wins = {n: (each * wins).sum(-1) for n, each in weights.items()}
        self.means = {n: (each * self.rewards).sum(-1) for n, each in weights.items()}
        each = [one for group in groups for one in group]
        self.tokens = sum(one.tokens_drawn for one in each) / len(each) / N
        """Of one completion."""

    def at(self, tokens: float) -> Tensor | None:
        """`[b, s]` win rates of best-of-N that draws so many tokens a prompt; None beyond the curve."""
        n = tokens / self.tokens
        if not 1 <= n <= N:
            return None
        below = math.floor(n)
        return torch.lerp(self.wins[below], self.wins[min(below + 1, N)], n - below)


def row(
    name: str, win: Tensor, reward: Tensor, drawn: float, scored: float, curve: Curve | None, base: Tensor
) -> dict[str, Any]:
    """`[b, s]` figures of prompts and seeds; tokens per prompt. `base`: the win rates of best-of-8."""

    def interval(values: Tensor, scale: Scale = "real") -> dict[str, Any]:
        return asdict(bootstrap_interval(values.mean(1)[:, None], scale=scale))

    equal: dict[str, Any] = dict.fromkeys(EQUAL)
    if curve is not None:
        costs = zip(EQUAL, (drawn, (drawn + scored) / 2), strict=True)  # best-of-N scores what it draws
        equal = {which: None if (at := curve.at(n)) is None else interval(win - at) for which, n in costs}
    figures = {
        "name": name,
        "tokens_drawn": drawn,
        "tokens_scored": scored,
        "win_rate": interval(win, "share"),
        "reward": interval(reward),
        "win_rate_beyond_best_of_8": interval(win - base),
        **{f"win_rate_beyond_equal_{which}": one for which, one in equal.items()},
    }
    shown_of = [shown(figures["win_rate"]), shown(figures["reward"]), shown(interval(win - base), "+")]
    shown_of += [shown(one, "+") for one in equal.values()] if curve is not None else []
    print(f"{name:<42} {drawn:>6.0f} {scored:>6.0f} {'  '.join(shown_of)}", flush=True)
    return figures


def shown(interval: dict[str, Any] | None, sign: str = "") -> str:
    if interval is None:
        return f"{'-':<24}"
    return f"{interval['estimate']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def table(bench: Bench, curve: Curve, found: dict[str, list[list[Found]]]) -> list[dict[str, Any]]:
    heads = ("win rate", "reward", "over best-of-8", "over N of equal drawn", "of equal drawn + scored")
    print(f"{'':<42} {'drawn':>6} {'scored':>6} {'  '.join(f'{head:<24}' for head in heads)}")
    base = curve.wins[8]
    rows = [
        row(f"best-of-{n}", curve.wins[n], curve.means[n], *(curve.tokens * n,) * 2, None, base)
        for n in (1, 2, 4, 8, 16, 32)
    ]
    for name, of_seeds in found.items():
        best = torch.stack([best_rewards(one) for one in of_seeds], 1)  # [b, s]
        each = [one for group in of_seeds for one in group]
        drawn, scored = (sum(costs) / len(each) for costs in zip(*map(costs_of, each), strict=True))
        rows.append(row(name, bench.win_rates(best), best, drawn, scored, curve, base))
    return rows


def costs_of(found: Found) -> tuple[int, int]:
    return found.tokens_drawn, found.tokens_scored


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


def ranks(values: Tensor) -> Tensor:
    """`[b, m]` ranks within each row; equal values share the mean of theirs."""
    below, at_or_below, _ = count_among(values, values.sort(-1).values)
    return (below + at_or_below).double()


def of_length(i: int, length: int, bench: Bench, groups: Sequence[list[Found]]) -> dict[str, Any]:
    """What the partial rewards at one length tell of the final ones, over all groups."""
    correlations, kept_best, chosen, ended = [], [], [], []
    for seed, found in enumerate(groups):
        final = rewards_of(found)
        partial = torch.tensor([partials(one, i) for one in found], dtype=torch.float64)
        both = zip(ranks(partial).numpy(), ranks(final).numpy(), strict=True)
        correlations += [float(np.corrcoef(a, b)[0, 1]) for a, b in both if a.std() > 0 and b.std() > 0]
        half = torch.tensor(
            [
                best_places(row, N // 2, tie_numbers(one.candidates.prompt_id, range(N), seed, length))
                for one, row in zip(found, partial.tolist(), strict=True)
            ]
        )
        best = final.gather(-1, half).amax(-1, keepdim=True)
        kept_best += (best == final.amax(-1, keepdim=True)).double().flatten().tolist()
        chosen += bench.win_rates(best)[:, 0].tolist()
        ended += [len(known) <= i for one in found for known in one.partial_rewards]
    figures = {
        "length": length,
        "ended": float(np.mean(ended)),
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
        "rank_correlation_sd": float(np.std(correlations, ddof=1)) if len(correlations) > 1 else None,
        "groups_without_correlation": len(groups) * len(bench.prompts) - len(correlations),
        "best_is_kept": float(np.mean(kept_best)),
        "win_rate_of_half": float(np.mean(chosen)),
    }
    told = (f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
    print(" ".join(told), flush=True)
    return figures


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="folder of a causal language model; then prompts and rewards, too")
    parser.add_argument("--prompts", help="file of prompts, with whatever columns the rewards take")
    parser.add_argument("--reward_funcs", nargs="+", help="rewards, as `nonpareil sample` takes them")
    parser.add_argument("--reward_weights", nargs="+", type=float)
    parser.add_argument("--max_prompts", type=int, default=24)
    parser.add_argument("--max_completion_length", type=int, default=40, help="8 or more")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    parser.add_argument("--references", type=int, default=32, help="single draws a prompt")
    parser.add_argument("--max_tokens_per_batch", type=int, default=32768, help="bounds the memory")
    parser.add_argument("--only", default="", help="searches whose name holds this")
    parser.add_argument("--json", help="file to write")
    args = parser.parse_args()
    own = [name for name in ("model", "prompts", "reward_funcs") if getattr(args, name)]
    if len(own) not in (0, 3):
        parser.error("--model, --prompts and --reward_funcs go together")
    if not own:
        args.model, args.reward_funcs = str(demo_path("policy")), [str(demo_path("reward"))]
        args.prompts = str(demo_path("prompts") / "test.parquet")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    begun, wall = time.process_time(), time.perf_counter()
    bench, lengths = Bench(args), lengths_of(args.max_completion_length)
    schedules = {k: one for k, one in schedules_of(args.max_completion_length).items() if args.only in k}
    seeds = range(args.seeds)
    groups = [bench.found(speculative_rejection(N, 0.0, lengths), s, "groups of 32") for s in seeds]
    found = {name: [bench.found(one, s, name) for s in seeds] for name, one in schedules.items()}
    rows = table(bench, Curve(bench, groups), found)
    partial = [of_length(i, length, bench, groups) for i, length in enumerate(lengths)]
    device = device_of(bench.engine.model)
    figures = {
        "date": date.today().isoformat(),
        **{name: value for name, value in vars(args).items() if name != "json"},
        **{name: Path(getattr(args, name)).name for name in ("model", "prompts")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cpu_seconds": time.process_time() - begun,
        "seconds": time.perf_counter() - wall,
    }
    print(f"{figures['seconds']:.0f} seconds on {figures['device']}, {figures['cpu_seconds']:.0f} of the CPU")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**figures, "rows": rows, "partial_rewards": partial}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
