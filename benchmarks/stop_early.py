"""What stopping early saves: stored groups replayed, one half of the prompts as calibration for the other.

python benchmarks/stop_early.py --groups GROUPS [--max_draws 16] [--orders 50]

Each group's completions come in a random order, and draws stop as `nonpareil serve` stops: at a fixed number, at a
quantile (`stop_at_quantile`, rounds of one and of two), or at one reward for all prompts (`stop_at_reward`, that
quantile of all the calibration's rewards). The win rate is that against the completions of the group that were not
drawn, ties one half, so groups must hold more than `max_draws`. The last column has the number of draws, between
whole ones, at which best-of-N wins as often, or has the reward.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nonpareil.records import GroupNumbers
from nonpareil.rollouts.numbers import read_numbers
from nonpareil.serving.calibration import Calibration
from nonpareil.serving.stopping import Goal

QUANTILES = (1 / 3, 0.6, 7 / 9, 15 / 17)
"""Those of best-of-2, -4, -8 and -16: (N - 1) / (N + 1)."""


def replayed(
    rewards: np.ndarray, orders: int, most: int, step: int, enough: Callable[[list[float]], bool]
) -> tuple[float, float, float]:
    """Mean draws, win rate and reward where draws stop as soon as enough, asked after every `step`."""
    rng, found = np.random.default_rng(0), []
    for row in rewards:
        for _ in range(orders):
            order = rng.permutation(row)
            count = min(step, most)
            while count < most and not enough(order[:count].tolist()):
                count = min(count + step, most)
            best, others = order[:count].max(), order[count:]
            found.append((count, np.mean((others < best) + 0.5 * (others == best)), best))
    draws, wins, reward = np.mean(found, axis=0)
    return float(draws), float(wins), float(reward)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=Path, required=True)
    parser.add_argument("--max_draws", type=int, default=16)
    parser.add_argument("--orders", type=int, default=50)
    asked = parser.parse_args()
    groups, _ = read_numbers(asked.groups)
    if not isinstance(groups, GroupNumbers) or np.isnan(groups.rewards).any():
        raise SystemExit(f"{asked.groups} holds groups of unequal sizes, or without a reward")
    rewards, most = groups.rewards, asked.max_draws
    if rewards.shape[1] <= most:
        raise SystemExit(f"groups of {rewards.shape[1]} leave nothing to win against after max_draws={most}")
    calibration, others = Calibration(rewards[::2]), rewards[1::2]
    fixed = [replayed(others, asked.orders, n, n, lambda _: True) for n in range(1, most + 1)]
    numbers, wins, values = map(list, zip(*fixed, strict=True))
    print(f"{len(others)} prompts, calibrated on {len(calibration)} others, {most} draws at most\n")
    print("| rule | draws | win rate | reward | best-of-N of that win rate | of that reward |")
    print("|---|---|---|---|---|---|")
    for quantile in QUANTILES:
        goals = {
            f"quantile {quantile:.3f}, rounds of 1": (1, Goal(quantile, calibration)),
            f"quantile {quantile:.3f}, rounds of 2": (2, Goal(quantile, calibration)),
            f"reward {(at := float(np.quantile(rewards[::2], quantile))):.2f}, rounds of 1": (1, Goal(at)),
        }
        for name, (step, goal) in goals.items():
            draws, won, value = replayed(
                others, asked.orders, most, step, lambda seen, goal=goal: goal.reached(seen) > 0
            )
            same = np.interp(won, wins, numbers), np.interp(value, values, numbers)
            print(f"| {name} | {draws:.2f} | {won:.3f} | {value:.3f} | {same[0]:.2f} | {same[1]:.2f} |")
    for n in (2, 4, 8):
        print(f"| best of {n} | {n} | {wins[n - 1]:.3f} | {values[n - 1]:.3f} | {n} | {n} |")


if __name__ == "__main__":
    main()
