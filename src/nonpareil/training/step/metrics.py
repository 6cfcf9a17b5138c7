"""The metrics of one step under TRL's names, and its completions on disk."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nonpareil.files import write_bytes
from nonpareil.methods.base import PolicyGradientTargets, ScoredDraws, Targets
from nonpareil.training.step.batch import StepBatch

COMPLETIONS_FOLDER = "completions"


def known_mean(values: Sequence[float]) -> float:
    """Of those that are not NaN; NaN where all are."""
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


def step_metrics(batch: StepBatch, reward_names: Sequence[str], *, anchor_moves: bool) -> dict[str, float]:
    """Means over the step's own draws (KL and entropy: nats); a step on stored groups alone has their reward.

    `kl_to_anchor` is the mean sampled log-ratio per completion. TRL's users read `kl` as that to the reference, so
    it is there only where the anchor is the reference for good.
    """
    k = batch.num_policy
    rewards, anchor_rewards = batch.draws.policy_rewards, batch.draws.anchor_rewards
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


def completion_rows(batch: StepBatch, targets: Targets, step: int) -> list[dict[str, Any]]:
    """One row per completion: who drew it, its rewards, and its advantage where the method has such a thing."""
    k = batch.num_policy
    advantages = targets.advantages.tolist() if isinstance(targets, PolicyGradientTargets) else None
    return [
        {
            "step": step,
            "prompt": str(group.prompt),
            "completion": group.completions[j],
            "drawn_by": "policy" if j < k else "anchor",
            **{name: values[j] for name, values in group.rewards_by_name.items()},
            "advantage": advantages[row][j] if advantages is not None and j < k else None,
        }
        for row, group in enumerate(batch.groups)
        for j in range(len(group))
    ]


def write_completions(output_dir: Path, step: int, batch: StepBatch, targets: Any) -> None:
    """`completions/completions_<step>.parquet`, there whole or not at all; see `completion_rows`."""
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(completion_rows(batch, targets, step)), content)
    write_bytes(output_dir / COMPLETIONS_FOLDER / f"completions_{step:05d}.parquet", content.getvalue())
