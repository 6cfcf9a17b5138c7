"""How many of a prompt's samples lie below, at or above a reward; failed (NaN) samples excluded."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class RankCounts(NamedTuple):
    """Counts among the valid samples of the same row."""

    below: Int[Tensor, "b k"]
    at_or_below: Int[Tensor, "b k"]
    valid: Int[Tensor, "b 1"]
    """How many samples of the row are not NaN."""


def count_among(rewards: Float[Tensor, "b k"], samples: Float[Tensor, "b m"]) -> RankCounts:
    """Rank each reward among its row's samples, in O((k + m) log m) time and no b x k x m memory.

    What is counted for a NaN reward means nothing: callers mask it.
    """
    dtype = torch.promote_types(rewards.dtype, samples.dtype)
    # NaN goes to the top as +inf, where no finite reward counts it; the minimum keeps +inf from counting it.
    ascending = (
        samples.to(dtype).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).sort(-1).values
    )
    valid = samples.isnan().logical_not().sum(-1, keepdim=True)
    values = rewards.to(dtype).contiguous()
    below = torch.searchsorted(ascending, values)
    at_or_below = torch.searchsorted(ascending, values, right=True)
    return RankCounts(torch.minimum(below, valid), torch.minimum(at_or_below, valid), valid)
