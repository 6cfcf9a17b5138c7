"""Best-of-N of the reference groups themselves, ties counted, for real N: win rate, KL, and the N worth a win rate.

`best_of_n` has the formulas of rewards that never tie. Here the groups say how rewards tie; where none do, each
value is that of those formulas, for any M.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.counts import count_among
from nonpareil.maths.interpolation import invert_rising
from nonpareil.maths.tie_classes import at_distinct, group_quantities, without_ties

_NUMBERS_AT_ONCE = 2**20  # 8 MiB of float64
_NODE_RATIO = 1.1
_SAME = 1e-9  # of win rates


def group_win_rate(rewards: Float[Tensor, "b m"], n: Float[Tensor, " g"]) -> Float[Tensor, "b g"]:
    """Each prompt's chance that best-of-n beats one further draw, ties one half, for real n >= 0; float64.

    The mean over all draws of the group, each against the n-subsets of the others: a subset's best is at most r
    with chance C(k, n) / C(m - 1, n), k the others at or below r, the binomials written with gamma functions for
    real n. Unbiased for whole n <= m - 1; n / (n + 1) without ties. Below 1 it is the draw from F^n, which is
    worse than the reference, by the same formula. Beyond m - 1 the rise is that of best-of-n from the group
    with replacement (biased, O(1/m)). NaN (failed) rewards are left out; a prompt without any is NaN.
    """
    rewards, n = rewards.double(), n.double()
    rates = (n / (n + 1)).repeat(len(rewards), 1)
    rates[rewards.isnan().all(1)] = torch.nan
    at_once = max(1, _NUMBERS_AT_ONCE // (rewards.shape[1] * len(n)))
    for rows in (~without_ties(rewards)[:, 0]).nonzero()[:, 0].split(at_once):
        rates[rows] = _tied_win_rates(rewards[rows], n)
    return rates


def group_kl(rewards: Float[Tensor, "b m"], n: Float[Tensor, " g"]) -> Float[Tensor, "b g"]:
    """Each prompt's KL(best-of-n || reference) in nats, ties sharing their class's mass, for real n >= 1; float64.

    The exact formula on the draws' shares, jackknifed (`maths.tie_classes`), so that a bias of O(1/m^2) is left;
    log n - (n - 1) / n without ties. NaN where every reward failed.
    """
    n = n.double()

    def of_draw(below: Tensor, size: Tensor, valid: Tensor) -> Tensor:
        mass = ((below + size) / valid) ** n - (below / valid) ** n
        return torch.xlogy(mass, mass * valid / size) / size

    return group_quantities(rewards, n.log() - (n - 1) / n, of_draw, lambda sums: sums)


def largest_n(rewards: Float[Tensor, "b m"]) -> int:
    """The largest N that the groups can show: one less than the most rewards that any prompt has."""
    return int((~rewards.isnan()).sum(1).max()) - 1


def n_nodes(largest: int) -> Float[Tensor, " g"]:
    """The N at which to tabulate `group_win_rate` for `group_equivalent_n`: 0 to `largest`, 1 among them."""
    steps = torch.arange(1, 200).double()
    above = _NODE_RATIO**steps
    below = torch.linspace(0, 1, 11).double()
    return torch.cat([below, above[above < largest - 0.01], torch.tensor([float(largest)])[: largest > 1]])


def group_equivalent_n(
    win_rate: Float[Tensor, " s"], table: Float[Tensor, "s g"], nodes: Float[Tensor, " g"]
) -> Float[Tensor, " s"]:
    """The real N whose best-of-N has this mean win rate, by the mean `group_win_rate` at `n_nodes`.

    1 at one half, below 1 for a policy worse than its reference, 0 at or below the win rate of N = 0. At most
    the last node, which means "as much or more": also where the win rate is all that best-of-N reaches, so that
    no N tells itself from the last.
    """
    # In n / (n + 1) the table is a straight line without ties, and near one with them.
    odds = invert_rising(nodes / (nodes + 1), table, win_rate.double())
    n = (odds / (1 - odds)).clamp(max=float(nodes[-1]))
    n = torch.where(win_rate > table[:, -1] - _SAME, nodes[-1], n)
    n = torch.where(win_rate > table[:, 0] + _SAME, n, 0.0)
    n = torch.where(win_rate > 0.5, n.clamp(min=1), n.clamp(max=1))
    return torch.where((win_rate - 0.5).abs() <= _SAME, 1.0, n)  # also where all rewards tie


def _tied_win_rates(rewards: Tensor, n: Tensor) -> Tensor:
    counts = count_among(rewards, rewards)
    below, valid = counts.below[..., None].double(), counts.valid[..., None].double()
    size = counts.at_or_below[..., None].double() - below
    beaten = at_distinct(functools.partial(_not_won, n), below, size, valid)
    here = ~rewards.isnan()[..., None]
    return 1 - torch.where(here, beaten, 0.0).sum(1) / valid[:, 0]


def _not_won(n: Tensor, below: Tensor, size: Tensor, valid: Tensor) -> Tensor:
    """The chance that best-of-n does not beat a draw with these counts, ties one half."""
    end = below + size
    shown = torch.minimum(n, (valid - 1).clamp(min=0))
    # Nothing lies below the lowest class, whatever a real n < 1 makes of C(0, n).
    beaten = _subsets(below, valid, shown) * (below > 0) + _subsets(end - 1, valid, shown)

    def replaced(power: Tensor) -> Tensor:
        """Twice the chance that none of n draws with replacement from the group beats a draw."""
        return (end / valid) ** power + (below / valid) ** power

    return (beaten + replaced(n.expand_as(shown)) - replaced(shown)) / 2


def _subsets(count: Tensor, valid: Tensor, n: Tensor) -> Tensor:
    """C(count, n) / C(valid - 1, n) for real n <= valid - 1: 0 from n = count + 1 on."""
    rest = count - n + 1
    log_ratio = torch.lgamma(count + 1) - torch.lgamma(rest.clamp(min=1e-300))
    log_ratio = log_ratio - torch.lgamma(valid) + torch.lgamma((valid - n).clamp(min=1e-300))
    return torch.where(rest > 1e-12, log_ratio.exp(), 0.0)
