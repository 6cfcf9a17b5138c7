"""The frontier under ties: the least KL for a mean win rate over prompts, from reference groups.

The best that any policy can do is `pi_ref exp(c u)`, u the mid-quantile of the reward (a tie class has the
middle of its quantiles), with one c for all prompts: a nat buys as much win rate at every prompt. With
`A(c) = mean over prompts of log E_ref[exp(c u)]` its mean win rate is A'(c), its KL is `c A'(c) - A(c)`, and the
least KL for a win rate w is the convex conjugate, `max over c of c w - A(c)`. A(c) is tabulated for each prompt,
so that a resample of prompts needs only means of columns.

Bias in M, the reference draws per prompt: the draws' shares stand for the probabilities in A(c), and a jackknife
takes out the bias of order 1/M (`maths.tie_classes`). For success rates of .05 to .7 and the win rates of best-of-2
to best-of-8 the least KL is then within 1 % at M = 32, 2 % at 16 and 8 % at 8 (the plug-in alone: 8 % too high at
32). Win rates beyond what the groups can show count as the highest that they can: a lower bound there. Where
rewards never tie the values are those of `best_of_n.least_kl` and `optimal_win_rate`, for any M.

One c for all prompts is the optimum of the *mean* win rate at a mean KL. Best-of-N spends alike at prompts where a
nat buys much and where it buys little, so over prompts of unequal success rates its own efficiency is below 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.best_of_n import exponential_tilt
from nonpareil.maths.interpolation import hermite
from nonpareil.maths.tie_classes import group_quantities

# From a win rate of .504 to .999 without ties; cubics between nodes are within 1e-5 of the least KL.
TILTS = torch.cat([torch.zeros(1), torch.logspace(-1.3, 3, 56)]).double()


@dataclass(frozen=True)
class TiltTable:
    """`pi_ref exp(c u)` at every c of `TILTS`, of each prompt or on average."""

    win_rate: Float[Tensor, "s g"]
    log_partition: Float[Tensor, "s g"]
    """A(c), nats."""

    @property
    def kl(self) -> Float[Tensor, "s g"]:
        """KL to the reference, nats."""
        return TILTS * self.win_rate - self.log_partition

    def columns(self) -> Float[Tensor, "s columns"]:
        """As one tensor, to take means over prompts of; `TiltTable.of` is the way back."""
        return torch.cat([self.win_rate, self.log_partition], dim=1)

    @classmethod
    def of(cls, columns: Float[Tensor, "s columns"]) -> "TiltTable":
        """From `columns` or means of them."""
        return cls(*columns.split(len(TILTS), dim=1))


def tilt_table(reference_rewards: Float[Tensor, "b m"]) -> TiltTable:
    """The table of each prompt; NaN where every reference reward failed."""
    win, kl = exponential_tilt(TILTS)
    untied = torch.cat([win, TILTS * win - kl])
    return TiltTable.of(group_quantities(reference_rewards, untied, _tilted, _win_and_log_partition))


def group_least_kl(win_rate: Float[Tensor, " k"], table: TiltTable) -> Float[Tensor, " k"]:
    """The least KL, nats, that any policy with this mean win rate spends, by the mean table of the same prompts.

    0 at one half and below. A win rate beyond the table's counts as its highest. The table may have one row
    for all.
    """
    table = TiltTable(*(x.expand(len(win_rate), -1) for x in (table.win_rate, table.log_partition)))
    highest = table.win_rate.amax(1)
    win = torch.minimum(win_rate.double().clamp(min=0.5), highest)[:, None]
    bounds = win * TILTS - table.log_partition  # each a tangent of the convex least KL
    node = bounds.argmax(1, keepdim=True)
    beyond = win > table.win_rate.gather(1, node)
    other = torch.where(beyond, node + 1, node - 1).clamp(0, len(TILTS) - 1)
    ends = torch.cat([node, other], dim=1)
    (near, far), (kl, other_kl), (c, other_c) = (
        values.expand(len(win), -1).gather(1, ends).unbind(1) for values in (table.win_rate, table.kl, TILTS)
    )
    width = far - near
    share = ((win[:, 0] - near) / torch.where(width == 0, 1.0, width)).clamp(0, 1)
    # d KL / d win rate is c itself.
    between = hermite(share, width, (kl, other_kl), (c, other_c))
    return torch.where(win_rate <= 0.5, 0.0, between.clamp(min=0))


def highest_win_rate(kl: Float[Tensor, " k"], table: TiltTable) -> Float[Tensor, " k"]:
    """The highest mean win rate that any policy reaches at these KLs, nats: the inverse of `group_least_kl`.

    The table may have one row for all.
    """
    table = TiltTable(*(x.expand(len(kl), -1) for x in (table.win_rate, table.log_partition)))
    low, high = torch.full_like(kl.double(), 0.5), table.win_rate.amax(1)
    for _ in range(50):
        middle = (low + high) / 2
        affordable = group_least_kl(middle, table) <= kl
        low, high = torch.where(affordable, middle, low), torch.where(affordable, high, middle)
    return torch.where(kl > 0, low, 0.5)


def _tilted(below: Tensor, size: Tensor, valid: Tensor) -> Tensor:
    """A draw's part of E[exp(c (u - 1))] and of E[u exp(c (u - 1))], u the middle of its class."""
    middle = (below + size / 2) / valid
    weight = (TILTS * (middle - 1)).exp() / valid
    return torch.cat([weight, weight * middle], dim=-1)


def _win_and_log_partition(sums: Tensor) -> Tensor:
    partition, moment = sums.split(len(TILTS), dim=-1)
    return torch.cat([moment / partition, partition.log() + TILTS], dim=-1)
