"""A tabular world: every completion of a prompt is enumerable, so every figure has an exact value."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nonpareil.records import Group

END = 999


@dataclass(frozen=True)
class Side:
    """Groups drawn from a table of probabilities, and the outcome drawn for each completion."""

    groups: list[Group]
    outcomes: Tensor  # [b, m]


Draw = Callable[..., Side]


@pytest.fixture
def draw() -> Draw:
    """`draw(probs [b, y], rewards [b, y], m, seed)`: outcome i is completion `y<i>`, tokens `[i, END]`."""

    def drawn(probs: Tensor, rewards: Tensor, m: int, seed: int) -> Side:
        outcomes = torch.multinomial(
            probs, m, replacement=True, generator=torch.Generator().manual_seed(seed)
        )
        groups = []
        for row, ids in enumerate(outcomes.tolist()):
            scores = [float(rewards[row, i]) for i in ids]
            groups.append(
                Group(
                    prompt_id=f"prompt-{row:05d}",
                    prompt=f"Prompt {row}",
                    prompt_token_ids=[1, 2],
                    completions=[f"y{i}" for i in ids],
                    completion_token_ids=[[i, END] for i in ids],
                    finish_reasons=["stop"] * m,
                    logprobs=[[float(probs[row, i].log()), 0.0] for i in ids],
                    rewards_by_name={"main": list(scores)},
                    rewards=list(scores),
                )
            )
        return Side(groups, outcomes)

    return drawn
