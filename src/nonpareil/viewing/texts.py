"""A winner and a loser side by side: which of their words differ."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

MOST_WORDS = 4000
"""Of both texts together; the time of a comparison grows with their product."""
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Part:
    """A piece of one text: in both, or in this one only."""

    kind: Literal["same", "own"]
    text: str


def difference(winner: str, loser: str) -> tuple[list[Part], list[Part]] | None:
    """The parts of both texts, word by word; a side's parts joined are its text. None where they are too long."""
    left, right = _WORDS.findall(winner), _WORDS.findall(loser)
    if len(left) + len(right) > MOST_WORDS:
        return None
    sides: tuple[list[Part], list[Part]] = ([], [])
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, words in zip(sides, (left[a:b], right[c:d]), strict=True):
            if words:
                side.append(Part("same" if kind == "equal" else "own", "".join(words)))
    return sides
