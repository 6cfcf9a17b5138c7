"""Which completions go on: the best by their scores so far, none without a score before one that has one."""

import hashlib
from collections.abc import Sequence


def best_places(scores: Sequence[float | None], count: int, ties: Sequence[int]) -> list[int]:
    """The places of the `count` best, in rising order.

    A score that is None stands behind all numbers. Where equal ones are not all taken, those with the least
    numbers in `ties` are.
    """

    def rank(place: int) -> tuple[bool, float, int]:
        score = scores[place]
        return (score is None, 0.0 if score is None else -score, ties[place])

    return sorted(sorted(range(len(scores)), key=rank)[:count])


def tie_numbers(prompt_id: str, samples: Sequence[int], seed: int, length: int) -> list[int]:
    """A number for each completion of a prompt, which says who goes before whom among equals at this length.

    They follow from the seed alone, so that no order of draws is favoured and no batch changes a choice.
    """
    digests = (
        hashlib.blake2b(f"{seed}/{prompt_id}/{sample}/tie at {length}".encode(), digest_size=8)
        for sample in samples
    )
    return [int.from_bytes(digest.digest(), "little") for digest in digests]
