"""The metrics of one step under TRL's names."""

import math
from collections.abc import Sequence

import torch

from nonpareil.methods.base import ScoredDraws
from nonpareil.records import Group, Logged
from nonpareil.training.step.batch import StepBatch, reward_tensor
from nonpareil.training.step.logged import logged_metrics


def known_mean(values: Sequence[float]) -> float:
    """Of those that are not NaN; NaN where all are."""
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


def step_metrics(batch: StepBatch, reward_names: Sequence[str], *, anchor_moves: bool) -> dict[str, float]:
    """Means over the step's own draws (KL and entropy: nats); a step on stored groups alone has their reward.

    `kl_to_anchor` is the mean sampled log-ratio per completion. TRL's users read `kl` as that to the reference, so
    it is there only where the anchor is the reference for good.
    """
    k = batch.num_policy
    rewards, anchor_rewards = reward_tensor(batch.groups).tensor_split([k], dim=1)  # whatever is compared
    every = [reward for group in batch.groups for reward in group.rewards or ()]
    metrics = {
        "rewards/failed_ratio": sum(reward is None for reward in every) / len(every),
        "frac_reward_zero_std": zero_std_ratio(batch.draws),
    }
    if anchor_rewards.numel():
        metrics["anchor_reward"] = anchor_rewards.nanmean().item()
    if not k:
        return metrics
    lengths = torch.tensor([float(len(ids)) for g in batch.groups for ids in g.completion_token_ids[:k]])
    clipped = [reason == "length" for g in batch.groups for reason in g.finish_reasons[:k]]
    metrics |= {
        "reward": rewards.nanmean().item(),
        "reward_std": rewards[~rewards.isnan()].std(unbiased=False).item(),
        "kl_to_anchor": batch.draws.log_ratio.mean().item(),
        "entropy": -batch.draws.policy_token_logprobs.sum().item() / lengths.sum().item(),
        "completions/mean_length": lengths.mean().item(),
        "completions/clipped_ratio": sum(clipped) / len(clipped),
    }
    if not anchor_moves:
        metrics["kl"] = metrics["kl_to_anchor"]
    metrics |= _sampling_metrics(batch)
    for name in reward_names:
        values = [v for g in batch.groups for v in g.rewards_by_name[name][:k] if v is not None]
        if values:
            scores = torch.tensor(
                values, dtype=torch.float64
            )  # float32 would lose what tells 1e8 and 1e8 + 0.1
            metrics[f"rewards/{name}/mean"] = scores.mean().item()
            metrics[f"rewards/{name}/std"] = scores.std(unbiased=False).item()
    return metrics


def evaluation_metrics(
    groups: Sequence[Group], reward_names: Sequence[str], logged: Sequence[Logged], prefix: str
) -> dict[str, float]:
    """Of one completion per held-out prompt, as `step_metrics` calls them, with a prefix; several rewards apart."""
    lengths = [len(group.completion_token_ids[0]) for group in groups]
    metrics = {
        "reward": reward_tensor(groups).nanmean().item(),
        "completions/mean_length": sum(lengths) / len(lengths),
    }
    for name in reward_names if len(reward_names) > 1 else ():
        values = [math.nan if v is None else v for group in groups for v in group.rewards_by_name[name]]
        metrics[f"rewards/{name}/mean"] = known_mean(values)
    metrics |= logged_metrics(logged, metrics)
    return {f"{prefix}_{name}": value for name, value in metrics.items()}


def zero_std_ratio(draws: ScoredDraws) -> float:
    """The share of prompts whose rewards, of all their draws, are equal; NaN where every reward failed.

    TRL's metric; there a prompt's draws are the policy's alone.
    """
    scored = ~(draws.policy_rewards.isnan().all(-1) & draws.anchor_rewards.isnan().all(-1))
    return 1 - draws.rewards_differ[scored].double().mean().item()


def _sampling_metrics(batch: StepBatch) -> dict[str, float]:
    """How far the engine that drew is from the trainer's policy, under TRL's names; nothing where they are one."""
    ratios = [tokens for row in batch.log_sampling_ratio() for tokens in row]
    if not ratios:
        return {}
    by_token = torch.cat(ratios).abs()
    weights = torch.stack([tokens.sum() for tokens in ratios]).exp()
    return {
        "sampling/sampling_logp_difference/mean": by_token.mean().item(),
        "sampling/sampling_logp_difference/max": by_token.max().item(),
        "sampling/importance_sampling_ratio/min": weights.min().item(),
        "sampling/importance_sampling_ratio/mean": weights.mean().item(),
        "sampling/importance_sampling_ratio/max": weights.max().item(),
    }
