"""Rewards over their standard deviation, for a method that follows their scale (TRL's `scale_rewards`)."""

from dataclasses import replace

import torch
from torch import Tensor

from nonpareil.methods.base import ScoredDraws, rewards_differ


def scaled(draws: ScoredDraws, scale: str) -> ScoredDraws:
    """The draws with each prompt's rewards less their mean, over the standard deviation (of n - 1).

    That of the prompt's own rewards (`group`), or of all of the step (`batch`); `none` leaves them as they are.
    Failed rewards have no part in it. 0 where the rewards that it is of are all equal.
    """
    if scale == "none":
        return draws
    rewards = torch.cat([draws.policy_rewards, draws.anchor_rewards], dim=1)
    centred = rewards - rewards.nanmean(-1, keepdim=True)
    of_all = scale == "batch"
    compared = rewards.view(1, -1) if of_all else rewards
    differ = rewards_differ(compared)[:, None]
    deviation = _deviation(compared)
    result = torch.where(differ, centred / deviation.where(differ, 1.0), centred * 0.0)
    k = draws.policy_rewards.shape[1]
    return replace(draws, policy_rewards=result[:, :k], anchor_rewards=result[:, k:])


def _deviation(rewards: Tensor) -> Tensor:
    """Of each row [b, m], NaN left out: [b, 1]."""
    centred = rewards - rewards.nanmean(-1, keepdim=True)
    largest = centred.abs().nan_to_num().amax(-1, keepdim=True).clamp(min=torch.finfo(rewards.dtype).tiny)
    count = (~rewards.isnan()).sum(-1, keepdim=True)
    squares = (centred / largest).square().nansum(-1, keepdim=True)
    return largest * (squares / (count - 1).clamp(min=1)).sqrt()
