"""A tabular policy over a few outcomes: one "token" a completion, every expectation a sum."""

import torch
from torch import Tensor

from nonpareil.methods.base import Method, ScoredDraws


def draws_of(
    own: Tensor,
    anchors: Tensor,
    rewards: Tensor,
    log_pi: Tensor,
    log_anchor: Tensor,
    tie_breaker: Tensor | None = None,
) -> ScoredDraws:
    """`ScoredDraws` where own [b, k] and anchors [b, m] are outcomes; rewards and log-probs [y] are theirs."""
    ties = (
        torch.linspace(0.2, 0.7, anchors.shape[1]).expand(anchors.shape)
        if tie_breaker is None
        else tie_breaker
    )
    return ScoredDraws(
        policy_rewards=rewards[own],
        anchor_rewards=rewards[anchors],
        policy_token_logprobs=log_pi.detach()[own][..., None],
        completion_mask=torch.ones(*own.shape, 1, dtype=torch.bool),
        anchor_logprobs_of_policy=log_anchor[own],
        anchor_logprobs=log_anchor[anchors],
        tie_breaker=ties,
    )


def losses(method: Method, own: Tensor, anchors: Tensor, log_pi: Tensor, draws: ScoredDraws) -> Tensor:
    """The loss [b] as the trainer calls it: log-probs that are not trained on are 0."""
    targets = method.targets(draws)
    policy = (log_pi[own] * targets.train_policy)[..., None]
    anchor = (log_pi[anchors] * targets.train_anchor)[..., None]
    return method.loss(policy, anchor, targets)
