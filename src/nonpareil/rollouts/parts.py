"""Prompts held out of a dataset that has no test split: the same ones in every run, and none of them trained on."""

import json
import random
from collections.abc import Sequence
from typing import Any

from nonpareil.errors import ConfigError


def part_of(prompts: Sequence[Any], size: float, *, held_out: bool) -> list[int]:
    """Which rows are held out, or which are not, by their places and in their order.

    Different prompts are drawn, by a seed that is always the same, so that all runs hold out the same ones. A row
    whose prompt is held out at another place is in neither part: a held-out prompt counts once, and is never
    trained on. A share is rounded to a whole number of prompts.

    Raises:
        ConfigError: a number that is not whole, or a part without prompts.
    """
    if size >= 1 and size != int(size):
        raise ConfigError(f"test_split_size={size:g} must be a share below 1, or a whole number of prompts")
    first: dict[str, int] = {}
    keys = [json.dumps(prompt, sort_keys=True, default=str) for prompt in prompts]
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    count = int(size) if size >= 1 else round(size * len(first))
    if not 0 < count < len(first):
        raise ConfigError(
            f"test_split_size={size:g} of {len(first)} different prompts holds out {count}, and both parts need "
            "some; give another size, or more prompts"
        )
    chosen = set(random.Random(0).sample(list(first), count))
    if held_out:
        return [place for key, place in first.items() if key in chosen]
    return [place for place, key in enumerate(keys) if key not in chosen]
