"""Which completions of a group a judge compares: all pairs, or an even selection within the budget."""

import hashlib
from dataclasses import dataclass

from nonpareil.errors import ConfigError

ORDERS = 2
"""Each pair is asked in both orders."""


@dataclass(frozen=True)
class Schedule:
    """The pairs of one group."""

    pairs: tuple[tuple[int, int], ...]
    """Places in the group, the lower one first."""
    opponents: int
    """How many pairs each completion is in."""


def opponents_for(size: int, max_calls: int | None) -> int:
    """In how many pairs each of `size` completions is compared, within `max_calls` calls per group.

    With all others where the budget allows it. Otherwise the largest number that is the same for each: there are
    `size * opponents / 2` pairs, of two calls each. An odd number of completions cannot each be in an odd number
    of pairs, so the next lower number is taken then.

    Raises:
        ConfigError: fewer than two completions, or a budget that does not connect them: with two opponents each
            they form a ring; with one each they are separate pairs, whose scores cannot be compared.
    """
    if size < 2:
        raise ConfigError(f"a judge compares completions of one prompt, and this group has {size}; draw more")
    if max_calls is None:
        return size - 1
    opponents = min(size - 1, max_calls // size)
    if size % 2 and opponents % 2:
        opponents -= 1
    least = min(2, size - 1)
    if opponents < least:
        raise ConfigError(
            f"judge_max_calls={max_calls} is too few for {size} completions per prompt: each in at least {least} "
            f"pair{'s' * (least > 1)}, asked in both orders, takes {size * least}, and all pairs "
            f"{size * (size - 1)}; raise it, or draw fewer"
        )
    return opponents


def calls_for(size: int, max_calls: int | None) -> int:
    """The most calls that a group of `size` completions takes. Equal completions and stored verdicts take none.

    Raises:
        ConfigError: as `opponents_for`.
    """
    return size * opponents_for(size, max_calls) // 2 * ORDERS


def schedule(size: int, max_calls: int | None, key: str) -> Schedule:
    """The pairs to judge of a group; the same for the same `key`, whatever else is scored.

    With too few calls for all pairs, the completions are put in a ring, in an order that follows from the key, and
    each is compared with those at certain distances along it. Distance 1 is always among them, so that a chain of
    judged pairs connects any two completions; the other distances follow from the key too.

    Raises:
        ConfigError: as `opponents_for`.
    """
    opponents = opponents_for(size, max_calls)
    ring = sorted(range(size), key=lambda place: _drawn(f"{key}/place/{place}"))
    further = sorted(range(2, (size + 1) // 2), key=lambda distance: _drawn(f"{key}/distance/{distance}"))
    distances = [1, *further][: opponents // 2]
    if opponents % 2:  # in an even ring, the one opposite: a single opponent, where other distances give two
        distances.append(size // 2)
    pairs = {
        tuple(sorted((ring[start], ring[(start + distance) % size])))
        for distance in distances
        for start in range(size)
    }
    return Schedule(tuple(sorted((low, high) for low, high in pairs)), opponents)


def _drawn(key: str) -> bytes:
    """Pseudo-random, and the same on every machine and Python."""
    return hashlib.sha256(key.encode()).digest()
