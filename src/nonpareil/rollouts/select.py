"""The best and the worst completion of a group; failed rewards never, ties by a seeded draw."""

import random
from collections.abc import Callable
from typing import Literal, get_args

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group

Truncated = Literal["allow", "exclude"]
"""Whether completions cut at `max_completion_length` may be chosen."""


def best(group: Group, n: int | None = None, *, seed: int = 0, truncated: Truncated = "allow") -> int | None:
    """Which of the first n completions (all by default) has the highest reward; None where none can.

    Ties are drawn by the seed and the prompt's id, so that no order of groups or completions is favoured.

    Raises:
        ConfigError: n below 1 or above the group's size, or another word for `truncated`.
        DataError: the group is not scored.
    """
    return _pick(group, n, seed, truncated, max)


def worst(group: Group, n: int | None = None, *, seed: int = 0, truncated: Truncated = "allow") -> int | None:
    """As `best`, for the lowest reward. In a group of one reward it may be the same completion."""
    return _pick(group, n, seed, truncated, min)


def eligible(group: Group, n: int | None = None, truncated: Truncated = "allow") -> dict[int, float]:
    """The rewards of those of the first n completions that may be chosen, by their place.

    Raises:
        ConfigError, DataError: as `best`.
    """
    if truncated not in get_args(Truncated):
        raise ConfigError(f"truncated={truncated!r} must be one of {', '.join(get_args(Truncated))}")
    if group.rewards is None:
        raise DataError(f"group {group.prompt_id!r} has no rewards; score the groups first")
    if n is not None and not 1 <= n <= len(group):
        raise ConfigError(f"n={n} must be between 1 and the {len(group)} completions of {group.prompt_id!r}")
    return {
        place: reward
        for place, reward in enumerate(group.rewards[:n])
        if reward is not None and (truncated == "allow" or group.finish_reasons[place] == "stop")
    }


def _pick(
    group: Group, n: int | None, seed: int, truncated: Truncated, extreme: Callable[..., float]
) -> int | None:
    rewards = eligible(group, n, truncated)
    if not rewards:
        return None
    wanted = extreme(rewards.values())
    tied = [place for place, reward in rewards.items() if reward == wanted]
    return random.Random(f"{seed} {group.prompt_id} {extreme.__name__}").choice(tied)
