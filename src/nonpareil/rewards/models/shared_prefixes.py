"""Which texts begin alike, and where computing their beginning once pays. Token ids only; no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nonpareil.rewards.models.encoding import without_end_pads

LEAST_SAVED = 1 / 8
"""Share of a batch's tokens that sharing must save: passes over a cache are slower, token by token."""
PASSES_SAVED = 2
"""Passes' worth of tokens that it must save: it makes two passes of one."""

Row = tuple[int, ...]


@dataclass
class SharedBatch:
    """Texts of one or more prompts; of each prompt's texts the first `length` tokens are the same."""

    length: int
    members: list[list[int]] = field(default_factory=list)
    """The texts of each prompt."""

    @property
    def texts(self) -> int:
        """How many there are."""
        return sum(map(len, self.members))


def shared_batches(
    rows: Sequence[Row], prompt_of: Mapping[Row, str], pad: int | None, tokens: int, overhead: int
) -> list[SharedBatch]:
    """Texts whose prefixes are to be read once, in batches; those that are in none are better scored whole.

    Prompts of a batch share as many tokens each as the shortest of their prefixes has: what is cut off the
    longer ones is computed for each text, and joining ends where that costs more than a pass of its own.

    Args:
        rows: the token ids of every text, no two alike.
        prompt_of: a key of each text's prompt.
        pad: the id that the model passes over where it pools (None: it has none).
        tokens: most prefix tokens of one batch.
        overhead: tokens that cost as much as a pass.
    """
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(prompt_of[row], []).append(i)
    found = [(_shared_length(rows, group, pad), group) for group in groups.values() if len(group) > 1]
    batches: list[SharedBatch] = []
    widest = 0
    for length, group in sorted(found, key=lambda one: -one[0]):
        last = batches[-1] if batches else None
        lost = last.texts * (last.length - length) if last is not None else 0
        if last is None or lost > overhead or widest * (len(last.members) + 1) > tokens:
            batches.append(SharedBatch(length, [group]))
            widest = length
        else:
            last.length = length
            last.members.append(group)
    return [batch for batch in batches if _pays(batch, rows, overhead)]


def _shared_length(rows: Sequence[Row], group: Sequence[int], pad: int | None) -> int:
    """Tokens that all begin with, short of the token that any of them is pooled at."""
    texts = [rows[i] for i in group]
    first, last = min(texts), max(texts)  # in the order of a dictionary, where all others lie between
    common = next(
        (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first)
    )
    return min(common, *(len(without_end_pads(text, pad)) - 1 for text in texts))


def _pays(batch: SharedBatch, rows: Sequence[Row], overhead: int) -> bool:
    saved = (batch.texts - len(batch.members)) * batch.length
    all_tokens = sum(len(rows[i]) for group in batch.members for i in group)
    return saved >= max(PASSES_SAVED * overhead, LEAST_SAVED * all_tokens)
