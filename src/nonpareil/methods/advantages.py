"""From returns to advantages: what the policy-gradient methods share."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nonpareil.errors import ConfigError
from nonpareil.maths.losses import leave_one_out_mean
from nonpareil.methods.base import ScoredDraws, rewards_differ

Baseline = Literal["batch", "prompt"]
ROUNDING = 1e-3
"""Nats of a completion's log-ratio, within which two models may be one."""


def advantages(
    returns: Float[Tensor, "b k"], valid: Bool[Tensor, "b k"], baseline: Baseline
) -> Float[Tensor, "b k"]:
    """Returns less the mean return of the others, so that the gradient stays unbiased; 0 where not valid.

    `batch`: the others are all other draws of the batch (BOND, arXiv:2407.14622). `prompt`: the prompt's own
    other draws (leave-one-out REINFORCE); a prompt with a single valid draw then has advantage 0, and a
    batch's single draw its return. Where all are equal every advantage is exactly 0, not a rounding error that
    Adam would blow up.
    """
    if baseline == "batch":
        mask, counted = valid.flatten(), _less_the_highest(returns.flatten(), valid.flatten())
        compared = (counted - leave_one_out_mean(counted, mask)).view_as(returns)
        return torch.where(valid, compared if mask.sum() > 1 else returns, 0.0)
    counted = _less_the_highest(returns, valid)
    others = valid.sum(-1, keepdim=True) - valid.to(returns.dtype)
    mean = (counted.sum(-1, keepdim=True) - counted) / others.clamp(min=1)
    return torch.where(valid & (others > 0), counted - mean, 0.0)


def signal_advantages(
    worth: Float[Tensor, "b k"],
    worth_of_tie: Float[Tensor, "b 1"] | float,
    anchor_rewards: Float[Tensor, "b m"],
    valid: Bool[Tensor, "b k"],
    baseline: Baseline,
) -> Float[Tensor, "b k"]:
    """What the rewards say of each draw, less a baseline; exactly 0 where own and anchor rewards all tie.

    `worth`: log pi_n - log pi_ref as estimated from the prompt's anchor draws, nats; `worth_of_tie`: of a draw
    that equals them all. Against a mean over the batch a prompt whose rewards tie would be pushed somewhere, to be
    pulled back by other prompts on average only. So with `batch` the mean is taken over, and given to, the prompts
    whose anchor rewards differ, or that have one alone; where they are equal the baseline is `worth_of_tie`. Either
    follows from anchor draws and other prompts alone, so the expected gradient stays what it is without a baseline.
    """
    if baseline == "prompt":
        return advantages(worth, valid, "prompt")
    alone = (~anchor_rewards.isnan()).sum(-1) == 1
    differ = valid & (rewards_differ(anchor_rewards) | alone)[:, None]
    tied = torch.where(valid & ~differ, worth - worth_of_tie, 0.0)
    return torch.where(differ, advantages(worth, differ, "batch"), tied)


def tells(
    gains: Float[Tensor, "b k"], draws: ScoredDraws, trained: Bool[Tensor, "b k"]
) -> Bool[Tensor, " b"]:
    """Where a prompt's rewards say something of its own draws: by `gains`, or by how far the policy has gone.

    Draws of one worth, as of a policy that always wins, are pulled back, unless the policy is the anchor: then all
    that is left of the log-ratio is rounding.
    """
    compared = (gains != 0) | (draws.log_ratio.abs() > ROUNDING)
    return draws.rewards_differ & (compared & trained).any(-1)


def _less_the_highest(values: Float[Tensor, "*b k"], valid: Bool[Tensor, "*b k"]) -> Float[Tensor, "*b k"]:
    """Shifted so that equal values are 0; 0 where not valid."""
    highest = values.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    return torch.where(valid, values - highest, 0.0)


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
