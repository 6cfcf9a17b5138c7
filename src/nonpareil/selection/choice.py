"""From a law to a candidate: drawn, the likeliest, or several, best first; reproducible by a key."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.selection.candidates import Candidates
from nonpareil.selection.rule import Rule

_SAME = 1e-10


def choose(law: Float[Tensor, " m"] | Sequence[float], key: str | int) -> int | None:
    """A candidate drawn from its law; the same key draws the same. None where the law is 0 throughout."""
    chances = [float(chance) for chance in law]
    total = sum(chances)
    if total <= 0:
        return None
    rest = random.Random(f"choose {key}").random() * total
    places = [place for place, chance in enumerate(chances) if chance > 0]
    for place in places:
        rest -= chances[place]
        if rest < 0:
            return place
    return places[-1]  # rounding


def likeliest(law: Float[Tensor, " m"] | Sequence[float], key: str | int) -> int | None:
    """The candidate of the highest probability, ties drawn by the key; None where the law is 0 throughout."""
    chances = [float(chance) for chance in law]
    top = max(chances, default=0.0)
    return choose([float(chance > 0 and chance >= top * (1 - _SAME)) for chance in chances], key)


def best_first(rule: Rule, candidates: Candidates, count: int, key: str | int) -> list[int]:
    """Up to `count` different candidates of one prompt: each drawn by the rule from those that are left.

    Where the rule has no more to choose (it asks for more than are left), the rest by their rewards. A candidate
    whose reward is null is never among them, so there may be fewer.

    Raises:
        ConfigError, DataError: as `Rule.law`.
    """
    left = candidates.rewards.clone()
    places: list[int] = []
    while len(places) < count and not left.isnan().all():
        place = choose(rule.law(replace(candidates, rewards=left))[0], f"{key} {len(places)}")
        if place is None:
            known = torch.where(left.isnan(), -torch.inf, left)[0]
            place = likeliest((known == known.max()).double(), f"{key} {len(places)}")
            assert place is not None
        places.append(place)
        left[0, place] = torch.nan
    return places
