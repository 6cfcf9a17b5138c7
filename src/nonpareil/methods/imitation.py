"""Which reference draws to imitate, and how much each: the forward KL to best-of-n."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.maths.order_statistics import rank_weights
from nonpareil.methods.base import best_draw, first_valid

Imitate = Literal["winner", "all"]


def imitation_weights(
    rewards: Float[Tensor, "b m"], tie_breaker: Float[Tensor, "b m"], n: int, imitate: Imitate
) -> Float[Tensor, "b m"]:
    """Weights whose sum over -log pi estimates the forward KL to best-of-n (up to a constant) without bias.

    `winner`: 1 at the best of the first n draws that did not fail. `all`: each draw's chance to be the best of
    a random n of them (`order_statistics.rank_weights`); the same mean with less variance. Rows sum to 1; a row
    with fewer than n valid rewards is 0 throughout.
    """
    if imitate == "winner":
        entrants = torch.where(first_valid(rewards, n), rewards, torch.nan)
        return best_draw(entrants, tie_breaker).to(rewards.dtype)
    return rank_weights(rewards, n).nan_to_num(nan=0.0)
