"""Quantities of a law that is known by m draws per prompt, whose rewards tie: the plug-in, and its jackknife.

Equal rewards are one class: no policy that acts on the reward can tell its members apart. A group in which no two
rewards are equal (`without_ties`) is taken for draws of a continuous reward instead, where its values do not
matter and the formulas of `best_of_n` are exact. So nothing changes where rewards never tie.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nonpareil.maths.counts import count_among

OfDraw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Draws below its class [b, m, 1], size of its class [b, m, 1], draws in all [b, 1, 1] -> its terms [b, m, f]."""
OfSums = Callable[[Tensor], Tensor]
"""The terms' sums over the draws [..., f] -> the quantities [..., g], elementwise in the leading axes."""

_NUMBERS_AT_ONCE = 2**16  # 512 KiB of float64: they stay in a processor's cache


def without_ties(rewards: Float[Tensor, "b m"]) -> Bool[Tensor, "b 1"]:
    """Whether no two of a prompt's rewards are equal; NaN (failed) ones left out."""
    ascending = rewards.sort(-1).values  # NaN last, and equal to nothing
    return (ascending[:, 1:] != ascending[:, :-1]).all(1, keepdim=True)


def group_quantities(
    rewards: Float[Tensor, "b m"], untied: Float[Tensor, " g"], of_draw: OfDraw, of_sums: OfSums
) -> Float[Tensor, "b g"]:
    """Of each prompt's reference law: `untied` where no rewards tie, else sums over its classes; float64.

    The plug-in takes the draws' shares for the probabilities; a quantity that is not linear in them is then off by
    O(1/m). The jackknife, `m * quantity - (m - 1) * mean of the quantity without one draw`, leaves O(1/m^2). NaN
    (failed) rewards are left out, so m may differ by prompt; a prompt without any left is NaN.
    """
    rewards = rewards.double()
    quantities = untied.double().repeat(len(rewards), 1)
    rows = (~without_ties(rewards)[:, 0]).nonzero()[:, 0]
    if len(rows):
        ranks, pattern = _tie_patterns(rewards[rows])
        at_once = max(1, _NUMBERS_AT_ONCE // (rewards.shape[1] * len(untied)))
        of_pattern = [_quantities(part, of_draw, of_sums) for part in ranks.split(at_once)]
        quantities[rows] = torch.cat(of_pattern)[pattern]
    quantities[rewards.isnan().all(1)] = torch.nan
    return quantities


def at_distinct(
    of_draw: OfDraw,
    below: Float[Tensor, "b m 1"],
    size: Float[Tensor, "b m 1"],
    valid: Float[Tensor, "b n 1"],
) -> Float[Tensor, "b m f"]:
    """The terms of every draw, worked out once for each three counts that occur; `valid` may be one per prompt."""
    counts, place = distinct_counts(below[..., 0], size[..., 0], valid[..., 0])
    below, size, valid = (count[:, None, None] for count in counts)
    terms = of_draw(below, size, valid)[:, 0]
    return terms[place]


def distinct_counts(
    below: Shaped[Tensor, "b m"], size: Shaped[Tensor, "b m"], valid: Shaped[Tensor, "b n"]
) -> tuple[tuple[Float[Tensor, " d"], ...], Int[Tensor, "b m"]]:
    """Every three counts that a draw has (below its class, in it, in all), and which of them are each draw's.

    They are few: two numbers of successes per prompt, at most m^2 / 2 whatever the rewards, where none failed.
    """
    base = below.shape[1] + 2
    distinct, place = ((valid * base + below) * base + size).long().unique(return_inverse=True)
    counts = distinct // base % base, distinct % base, distinct // base**2
    return tuple(count.double() for count in counts), place


def _tie_patterns(rewards: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "p m"], Int[Tensor, " b"]]:
    """Every way in which a prompt's rewards tie, as ascending ranks, NaN last; and which one is each prompt's.

    With successes for rewards there are as many as numbers of successes.
    """
    ascending = rewards.sort(-1).values.contiguous()
    ranks = count_among(ascending, ascending).below.masked_fill(ascending.isnan(), -1)
    patterns, which = ranks.unique(dim=0, return_inverse=True)
    return patterns.double().masked_fill(patterns < 0, torch.nan), which


def _quantities(ascending: Tensor, of_draw: OfDraw, of_sums: OfSums) -> Tensor:
    """`ascending`: rewards of which some tie, NaN last."""
    counts = count_among(ascending, ascending)
    first, end = counts.below[..., None], counts.at_or_below[..., None]  # of the draw's class, as positions
    below, size, valid = first.double(), (end - first).double(), counts.valid[..., None].double()
    here = ~ascending.isnan()[..., None]

    def running(terms: Tensor) -> Tensor:
        """The sum of the terms before each position, and of all at the last."""
        return torch.nn.functional.pad(torch.where(here, terms, 0.0).cumsum(1), (0, 0, 1, 0))

    def at(sums: Tensor, position: Tensor) -> Tensor:
        return sums.gather(1, position.expand(-1, -1, sums.shape[-1]))

    whole = of_sums(running(at_distinct(of_draw, below, size, valid))[:, -1])
    # Without one draw: classes below it keep their counts, its own loses one, those above move down by one.
    fewer = valid - 1  # at least 1: two draws tie
    lower = at(running(at_distinct(of_draw, below, size, fewer)), first)
    upper = running(at_distinct(of_draw, (below - 1).clamp(min=0), size, fewer))
    own = (size - 1) * at_distinct(of_draw, below, (size - 1).clamp(min=1), fewer)
    without = of_sums(lower + own + (upper[:, -1:] - at(upper, end)))
    mean_without = torch.where(here, without, 0.0).sum(1) / valid[:, 0]
    return valid[:, 0] * whole - (valid[:, 0] - 1) * mean_without
