"""Groups of two words a completion, drawn by chance, whose reward is how often "good" is among them."""

import random

import pytest

from nonpareil.records import Group
from tests.tiny import END, GOOD


def group_of(number: int, draw: random.Random, m: int = 8, **changes) -> Group:
    completions = [[draw.choice((GOOD, 9, 10)) for _ in range(draw.randint(1, 4))] + [END] for _ in range(m)]
    rewards = [float(sum(token == GOOD for token in ids)) for ids in completions]
    return Group(
        **{
            "prompt_id": f"p{number}",
            "prompt": f"prompt {number}",
            "prompt_token_ids": [1, 6 + number % 13, 6 + number // 13 % 13],
            "completions": [""] * m,
            "completion_token_ids": completions,
            "finish_reasons": ["stop"] * m,
            "logprobs": [],
            "rewards_by_name": {"good": rewards},
            "rewards": rewards,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def groups() -> list[Group]:
    draw = random.Random(0)
    return [group_of(number, draw) for number in range(80)]
