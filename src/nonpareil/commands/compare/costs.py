"""What a run of a comparison took, stage by stage, from what the stages left in its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a run took. None where a run does not say."""

    completions_drawn: int | None
    """By the run itself, and the stored pool where it learnt from one."""
    tokens_trained: int | None
    """By the policy; what a value read is told apart."""
    steps: int | None
    seconds: float | None
    """Of all stages below."""
    peak_memory_bytes: int | None
    """Of the accelerator where the run trained on one, else the process's largest resident memory."""
    pool_seconds: float | None = None
    """Of drawing and scoring the part of the pool that it used; None where it used none."""
    value_seconds: float | None = None
    """Of fitting a value, with loading its network and its report; None where none was fitted."""
    credits_seconds: float | None = None
    """Of making credits, with loading policy and value; None where none were made."""
    training_seconds: float | None = None
    """Of its steps, drawing and scoring included; of its whole process, where it does not say."""
    tokens_fitted: int | None = None
    """That went through a forward and backward pass of the value's fit."""
    candidates_scored: int | None = None
    """Next tokens that went through a forward pass of the value."""


def cost_of(done: Mapping[str, Any], pool_completions: int, pool_seconds: float, *, of_command: bool) -> Cost:
    """Of a finished run, from what it wrote of itself, and its part of the pool.

    A command that learns from the pool, and does not say what it drew, drew nothing else.
    """
    drawn = done.get("completions_drawn", 0 if of_command and pool_completions else None)
    value, credits = (done.get("made_before", {}).get(stage, {}) for stage in ("value", "credits"))
    before = [value.get("seconds"), credits.get("seconds")]
    return Cost(
        completions_drawn=None if drawn is None else drawn + pool_completions,
        tokens_trained=done.get("tokens_trained"),
        steps=done.get("steps"),
        seconds=done["seconds"] + pool_seconds + sum(each or 0.0 for each in before),
        peak_memory_bytes=done["peak_memory_bytes"],
        pool_seconds=pool_seconds if pool_completions else None,
        value_seconds=before[0],
        credits_seconds=before[1],
        training_seconds=done["seconds"],
        tokens_fitted=value.get("tokens"),
        candidates_scored=credits.get("candidates"),
    )
