"""Draws whose log-probs are no numbers: from NaN or infinite logits nothing can be drawn.

A log-prob is finite exactly where its step's logits are: -inf rules a token out, as long as another one is left.
"""

import math
from collections.abc import Sequence

import torch

from nonpareil.errors import NotFiniteError
from nonpareil.records import Draws, Prompt


def not_finite(logprobs: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Completion and token, counted from 0, of the first log-prob that is NaN or infinite; None where none is."""
    for completion, values in enumerate(logprobs):
        for token, value in enumerate(values):
            if not math.isfinite(value):
                return completion, token
    return None


def check_draws(prompts: Sequence[Prompt], drawn: list[Draws], dtype: torch.dtype) -> list[Draws]:
    """The draws, none of them from logits that are NaN or infinite.

    Raises:
        NotFiniteError: naming the first prompt, completion and token of them.
    """
    for prompt, draws in zip(prompts, drawn, strict=True):
        if (place := not_finite(draws.logprobs)) is not None:
            raise NotFiniteError(
                f"prompt {prompt.prompt_id}, completion {place[0]}, token {place[1]} (the first is 0): the model's "
                f"logits are NaN or infinite, and nothing can be drawn from them; {_remedy(dtype)}"
            )
    return drawn


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return "float16 ends at 65504, which this model goes beyond: give dtype=bfloat16, or float32"
    name = str(dtype).removeprefix("torch.")
    return f"they are so in {name}: the weights are damaged, or their training diverged"
