"""From returns to advantages: what the policy-gradient methods share."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.losses import leave_one_out_mean

Baseline = Literal["batch", "prompt"]


def advantages(
    returns: Float[Tensor, "b k"], valid: Bool[Tensor, "b k"], baseline: Baseline
) -> Float[Tensor, "b k"]:
    """Returns less the mean return of the others, so that the gradient stays unbiased; 0 where not valid.

    `batch`: the others are all other draws of the batch (BOND, arXiv:2407.14622). `prompt`: the prompt's own
    other draws (leave-one-out REINFORCE); a prompt with a single valid draw then has advantage 0.
    """
    if baseline == "batch":
        mean = leave_one_out_mean(returns.flatten(), valid.flatten()).view_as(returns)
        return torch.where(valid, returns - mean, 0.0)
    counted = torch.where(valid, returns, 0.0)
    others = valid.sum(-1, keepdim=True) - valid.to(returns.dtype)
    mean = (counted.sum(-1, keepdim=True) - counted) / others.clamp(min=1)
    return torch.where(valid & (others > 0), returns - mean, 0.0)


def mean_over(values: Float[Tensor, "b k"], mask: Bool[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """The mean of each row's masked entries; 0 for a row without any."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def check_baseline(baseline: str, num_generations: int) -> None:
    """Refuse the mean of a prompt's other draws where there are none: nothing would be learnt.

    Raises:
        ConfigError: naming the setting, the value and the remedy.
    """
    if baseline == "prompt" and num_generations < 2:
        raise ConfigError(
            f"num_generations={num_generations} with baseline=prompt: the prompt's other draws are the baseline; "
            "draw at least 2, or give baseline=batch"
        )
