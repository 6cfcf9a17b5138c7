"""Smooth values between the nodes of a table."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def hermite(
    share: Float[Tensor, " s"],
    width: Float[Tensor, " s"],
    ends: tuple[Float[Tensor, " s"], Float[Tensor, " s"]],
    slopes: tuple[Float[Tensor, " s"], Float[Tensor, " s"]],
) -> Float[Tensor, " s"]:
    """The cubic with these values and slopes at an interval's ends, `share` of its width from the left one."""
    left, right = (1 + 2 * share) * (1 - share).square(), (3 - 2 * share) * share.square()
    turn_left, turn_right = share * (1 - share).square(), -share.square() * (1 - share)
    return ends[0] * left + ends[1] * right + width * (slopes[0] * turn_left + slopes[1] * turn_right)


def monotone_slopes(nodes: Float[Tensor, " g"], values: Float[Tensor, "s g"]) -> Float[Tensor, "s g"]:
    """Slopes at the nodes that keep the cubics between rising values rising (Fritsch and Butland, 1984)."""
    width = nodes.diff()
    secant = values.diff(dim=1) / width
    before, after = width[:-1], width[1:]
    near, far = (2 * after + before) / (3 * (before + after)), (after + 2 * before) / (3 * (before + after))
    inner = secant[:, :-1] * secant[:, 1:] / (near * secant[:, 1:] + far * secant[:, :-1])
    inner = torch.where((secant[:, :-1] > 0) & (secant[:, 1:] > 0), inner, 0.0)
    return torch.cat([secant[:, :1], inner, secant[:, -1:]], dim=1)


def invert_rising(
    nodes: Float[Tensor, " g"], values: Float[Tensor, "s g"], target: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """Where a function that rises through these values reaches the target; the first or last node beyond them."""
    values = values.cummax(dim=1).values  # against rounding
    slopes = monotone_slopes(nodes, values)
    right = torch.searchsorted(values.contiguous(), target[:, None].contiguous())[:, 0].clamp(
        1, len(nodes) - 1
    )
    return _reached_between(nodes, values, slopes, right, target)


def first_reached(
    nodes: Float[Tensor, " g"], values: Float[Tensor, "s g"], target: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """Where a curve through these values first reaches the target, from below; NaN where it never does.

    Between neighbours it is monotone, so that it has no values but theirs and those between them. A row may fall
    and rise again; its first value must lie below the target.
    """
    there = values >= target[:, None]
    right = there.int().argmax(1).clamp(min=1)
    position = _reached_between(nodes, values, monotone_slopes(nodes, values), right, target)
    return torch.where(there.any(1), position, torch.nan)


def value_at(
    nodes: Float[Tensor, " g"], values: Float[Tensor, "s g"], position: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """The same curve's value at a position within the nodes; NaN at NaN."""
    known = position.nan_to_num(nan=float(nodes[0]))
    right = torch.searchsorted(nodes, known).clamp(1, len(nodes) - 1)
    slopes = monotone_slopes(nodes, values)
    width = nodes[right] - nodes[right - 1]
    share = (known - nodes[right - 1]) / width
    found = hermite(share, width, _pair(values, right), _pair(slopes, right))
    return torch.where(position.isnan(), torch.nan, found)


def _reached_between(
    nodes: Tensor, values: Tensor, slopes: Tensor, right: Int[Tensor, " s"], target: Tensor
) -> Tensor:
    """Where each row's rising cubic between a node and the one before it reaches the target, by bisection."""
    ends, turns = _pair(values, right), _pair(slopes, right)
    width = nodes[right] - nodes[right - 1]
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(50):
        middle = (low + high) / 2
        short = hermite(middle, width, ends, turns) < target
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return nodes[right - 1] + high * width


def _pair(table: Tensor, right: Int[Tensor, " s"]) -> tuple[Tensor, Tensor]:
    """The entries of each row before and at a column."""
    left, there = (right - 1)[:, None], right[:, None]
    return table.gather(1, left)[:, 0], table.gather(1, there)[:, 0]
