"""Credits made of a value: what other next tokens would have been worth in stored completions."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.credits import Credits
from nonpareil.errors import DataError, NotFiniteError
from nonpareil.files import jsonable
from nonpareil.models.candidates import choose_candidates
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Group
from nonpareil.values.base import PrefixValue
from nonpareil.values.settings import CreditSettings

AT_ONCE = 32
"""Completions whose candidates are held in memory."""
MOST_AT_PROMPT = 1e-3
"""Nats, of what is 0."""
MOST_APART, MOST_APART_SHARE = 0.05, 0.25
"""Nats, and as a share of the mean absolute value: by how much two answers about one text may differ."""
LARGE = 2.0
"""Nats, of an advantage that a training cuts by default."""


@dataclass(frozen=True)
class CreditTotals:
    """What credits are like, over all positions of their completions."""

    completions: int
    positions: int
    candidates: int
    """At each position."""
    mass: float
    """The reference's probability of the drawn and the likeliest candidates, which are exact; mean."""
    spread: float
    """E_a (exp(A) - 1)^2 under the reference: by how much the next tokens of a position differ; mean."""
    drift: float
    """(E_a exp(A) - 1)^2 over `spread`: 0 for a value that agrees with itself one token on. Sampled candidates add
    their noise to it."""
    large_share: float
    """Of the reference's probability: advantages beyond 2 nats, which a training cuts by default."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return jsonable(self)


def make_credits(
    policy: PreTrainedModel,
    value: PrefixValue,
    groups: Sequence[Group],
    settings: CreditSettings,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_tokens_per_batch: int = 4096,
) -> dict[str, list[Credits | None]]:
    """By prompt id the credits of each completion of the groups; None of those that were not chosen.

    A completion's candidates depend on seed, prompt and its place in the group alone, whatever is beside it.

    Args:
        policy: the reference, that drew the groups.
        value: of prefixes, under that policy.
        groups: scored.
        settings: which completions, how many candidates.
        temperature: that the groups were drawn at.
        seed: of the choice of completions and of candidates.
        max_tokens_per_batch: of a pass of the policy.

    Raises:
        DataError: a value that answers with other shapes, is not 0 at a prompt, or contradicts itself.
        NotFiniteError: or with NaN.
    """
    found: dict[str, list[Credits | None]] = {group.prompt_id: [None] * len(group) for group in groups}
    chosen = [
        (group, place)
        for group in groups
        for place in chosen_completions(group, settings.credited_completions, seed)
    ]
    for start in range(0, len(chosen), AT_ONCE):
        some = chosen[start : start + AT_ONCE]
        sequences = TokenSequences(
            [group.prompt_token_ids for group, _ in some],
            [group.completion_token_ids[place] for group, place in some],
        )
        keys = np.array([_number(seed, group, place) for group, place in some], dtype=np.uint64)
        made = _credits(policy, value, sequences, keys, settings, temperature, max_tokens_per_batch)
        for (group, place), credits in zip(some, made, strict=True):
            found[group.prompt_id][place] = credits
    return found


def chosen_completions(group: Group, count: int, seed: int) -> list[int]:
    """The places of so many completions of a group, by chance, among those with a reward and a token."""
    usable = [
        place
        for place, (reward, ids) in enumerate(
            zip(group.rewards or [], group.completion_token_ids, strict=True)
        )
        if reward is not None and ids
    ]
    return sorted(sorted(usable, key=lambda place: _number(seed, group, place))[:count])


def _number(seed: int, group: Group, place: int) -> int:
    """64 bits that are a completion's own; the draws' keys are hashes of another text."""
    text = f"credits/{seed}/{group.prompt_id}/{place}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _credits(
    policy: PreTrainedModel,
    value: PrefixValue,
    sequences: TokenSequences,
    keys: np.ndarray,
    settings: CreditSettings,
    temperature: float,
    max_tokens: int,
) -> list[Credits]:
    candidates = choose_candidates(
        policy,
        sequences,
        keys,
        likeliest=settings.likeliest,
        from_tail=settings.from_tail,
        temperature=temperature,
        max_tokens_per_batch=max_tokens,
    )
    shape = candidates.token_ids.shape
    # A user's value may answer in half precision, or in NumPy arrays.
    prefixes = torch.as_tensor(value.prefix_values(sequences)).float()
    after = torch.as_tensor(value.candidate_values(sequences, candidates.token_ids)).float()
    if prefixes.shape != (shape[0], shape[1] + 1) or after.shape != shape:
        raise DataError(
            f"the value gave prefixes {list(prefixes.shape)} and candidates {list(after.shape)}; "
            f"{[shape[0], shape[1] + 1]} and {list(shape)} are meant"
        )
    if not (prefixes.isfinite().all() and after.isfinite().all()):
        raise NotFiniteError("the value gave NaN or infinity for a prefix, of which no credit can be made")
    lengths = [len(own) for own in sequences.completion_ids]
    prefixes = prefixes.to(after)
    for row, length in enumerate(lengths):
        _check_agrees(prefixes[row, : length + 1], after[row, :length, 0])
    before = prefixes[:, :-1]
    advantages = after - before[..., None]
    ids, weights, advantages_, values = (
        each.cpu().numpy() for each in (candidates.token_ids.int(), candidates.weights, advantages, before)
    )
    return [
        Credits(
            ids[row, :length].copy(),
            weights[row, :length].astype(np.float32),
            advantages_[row, :length].astype(np.float32),
            values[row, :length].astype(np.float32),
        )
        for row, length in enumerate(lengths)
    ]


def _check_agrees(prefixes: Float[Tensor, " t+1"], own: Float[Tensor, " t"]) -> None:
    """Refuse a completion's values that do not begin with 0, or whose own tokens lead elsewhere than its prefixes.

    Rounding is let through: two passes of a network in bfloat16 differ.

    Raises:
        DataError: saying which, and by how much.
    """
    if (first := prefixes[0].item()) and abs(first) > MOST_AT_PROMPT:
        raise DataError(
            f"the value gave {first:.3g} nats for a prompt, and that is 0 by its definition; subtract the prompt's "
            "value from those of prefixes and candidates"
        )
    apart = (prefixes[1:] - own).abs().mean().item()
    if apart > MOST_APART + MOST_APART_SHARE * prefixes.abs().mean().item():
        raise DataError(
            f"the value of a prefix and one token is {apart:.3g} nats off, on average over a completion, from that "
            "of the longer prefix, and they are one; give both from the same prompt on, in the same order"
        )


def credit_totals(credits: Iterable[Credits], settings: CreditSettings) -> CreditTotals:
    """What they are like; the advantages are taken as they are, uncut."""
    completions = positions = 0
    sums = np.zeros(4)
    for each in credits:
        completions, positions = completions + 1, positions + len(each)
        weights, advantages = each.weights.astype(np.float64), each.advantages.astype(np.float64)
        change = np.expm1(advantages)
        sums += (
            weights[:, : 1 + settings.likeliest].sum(),
            (weights * change**2).sum(),
            ((weights * change).sum(-1) ** 2).sum(),
            weights[np.abs(advantages) > LARGE].sum(),
        )
    mass, spread, drift, large = sums / max(positions, 1)
    return CreditTotals(
        completions=completions,
        positions=positions,
        candidates=settings.candidates,
        mass=mass,
        spread=spread,
        drift=drift / spread if spread else 0.0,
        large_share=large,
    )
