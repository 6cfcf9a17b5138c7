"""The best and the worst completion of a group, or a rule's choice; failed rewards never, ties by a seeded draw."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from nonpareil.errors import ConfigError, DataError
from nonpareil.records import Group
from nonpareil.selection.rule import Rule

Truncated = Literal["allow", "exclude"]
"""Whether completions cut at `max_completion_length` may be chosen."""
_EVEN = 1e-10


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


@dataclass(frozen=True)
class Choice:
    """A rule of selection, and how it reads texts (`selection.texts`)."""

    rule: Rule
    answers: str = "final"
    similarity: str = "chrf"


def chosen(
    group: Group, choice: Choice, n: int | None = None, *, seed: int = 0, truncated: Truncated = "allow"
) -> tuple[int | None, bool]:
    """Which of the first n completions the rule most likely chooses, and whether it tells any from another.

    Ties are drawn by seed and prompt. None where it has none to choose: too few, or without what it reads.
    Completions that may not be chosen (`eligible`) do not vote either.

    Raises:
        ConfigError, DataError: as `eligible`, and as the rule's law; a rule that takes more than the group has.
    """
    from nonpareil.rollouts.candidates import candidates_of_groups
    from nonpareil.selection.choice import likeliest

    rule, rewards = choice.rule, eligible(group, n, truncated)
    if rule.least > len(group.completions[:n]):
        raise ConfigError(
            f"rule={str(rule)!r} takes {rule.least} completions, and group {group.prompt_id!r} has "
            f"{len(group.completions[:n])} to choose from; give a smaller n in the rule"
        )
    places = [*rewards]
    if len(places) < rule.least:
        return None, False
    kept = replace(
        group,
        completions=[group.completions[place] for place in places],
        completion_token_ids=[
            group.completion_token_ids[one] for one in places if group.completion_token_ids
        ],
        logprobs=[group.logprobs[place] for place in places if group.logprobs],
        rewards=[*rewards.values()],
    )
    candidates = candidates_of_groups([kept], rule.needs, choice.answers, choice.similarity)
    law = rule.law(candidates)[0].tolist()
    place = likeliest(law, f"{seed} {group.prompt_id}")
    return None if place is None else places[place], max(law) - min(law) > _EVEN * max(law)
