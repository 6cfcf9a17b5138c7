"""How much of what the credits say a training has learnt: nearly nothing, or more than there is, is told."""

from collections.abc import Mapping, Sequence
from typing import Any

from nonpareil.terminal import tell

LAST = 5
"""Logged lines that are averaged: prompts differ from step to step."""
LEAST, MOST = 0.1, 1.5
"""Of the share that is learnt: what lies outside is told."""


def tell_learnt(log_history: Sequence[Mapping[str, Any]]) -> None:
    """Say so where the last logged losses are nearly 0, or below minus what can be learnt, `value/target_kl`.

    Nothing is said of a method that logs none.
    """
    lines = [line for line in log_history if "loss" in line and "value/target_kl" in line][-LAST:]
    whole = sum(line["value/target_kl"] for line in lines)
    if not whole > 0:
        return
    share = -sum(line["loss"] for line in lines) / whole
    if share < LEAST:
        tell(
            f"hardly anything was learnt: {share:.2f} of what the credits say (-loss / value/target_kl, at the "
            "end); raise learning_rate or the number of steps, or lower learning_rate where the loss rose above 0"
        )
    elif share > MOST:
        tell(
            f"noise was learnt by heart: {share:.2f} times what the credits say (-loss / value/target_kl, at the "
            "end); raise credited_completions or likeliest, or take fewer epochs"
        )
