"""One training step's draws: the policy's and the anchor's completions, scored, with their log-ratios."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nonpareil.engines.sampling import sample_keys
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import RewardError
from nonpareil.methods.base import Method, ScoredDraws
from nonpareil.models.anchors import EMAAnchor, WorkingCopy
from nonpareil.models.logprobs import TokenSequences, completion_logprobs, token_budget_batches
from nonpareil.records import Draws, Group, Prompt, SamplingParams, ScoreRequest
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.config import DistillationConfig


@dataclass(frozen=True)
class StepDraws:
    """What one step trains on and what is logged of it. Groups hold policy draws first, then anchor draws."""

    groups: list[Group]
    numbers: ScoredDraws
    num_policy: int


class StepDrawer:
    """Draws and scores for one step after another, with one working copy for policy and anchor.

    Every random number follows from (seed, step, prompt, sample), so a resumed run draws the same.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        working: WorkingCopy,
        method: Method,
        reward: CombinedReward,
        config: DistillationConfig,
    ):
        self.engine, self.working, self.method = engine, working, method
        self.reward, self.config = reward, config

    def draw(
        self, policy: torch.nn.Module, anchor: EMAAnchor, prompts: Sequence[Prompt], step: int
    ) -> StepDraws:
        """Draw, score and compare with the anchor. See `ScoredDraws`.

        Raises:
            RewardError: every reward of the step failed; training on nothing would look like training.
        """
        self.working.load(policy)
        ours = self.engine.draw(prompts, self.method.policy_draws, self._sampling(step, "policy"))
        self.working.load(anchor.module)
        theirs = self.engine.draw(prompts, self.method.anchor_draws, self._sampling(step, "anchor"))
        groups = [
            Group.of(p, _join(mine, other)) for p, mine, other in zip(prompts, ours, theirs, strict=True)
        ]
        failures = score_groups(groups, self.reward)
        rewards = reward_tensor(groups)
        if rewards.isnan().all():
            reason = next(reason for reasons in failures.values() for reason in reasons if reason)
            raise RewardError(f"every reward of step {step} failed; the first reason: {reason}")
        k = self.method.policy_draws
        numbers = ScoredDraws(
            policy_rewards=rewards[:, :k],
            anchor_rewards=rewards[:, k:],
            log_ratio=self._log_ratio(prompts, ours),
            tie_breaker=self._tie_breaker(prompts, step),
        )
        return StepDraws(groups, numbers, k)

    def draw_policy(self, policy: torch.nn.Module, prompts: Sequence[Prompt], seed: int) -> list[Group]:
        """One scored completion of the policy a prompt, for evaluation during training."""
        self.working.load(policy)
        draws = self.engine.draw(prompts, 1, self.config.sampling(seed))
        groups = [Group.of(prompt, drawn) for prompt, drawn in zip(prompts, draws, strict=True)]
        score_groups(groups, self.reward)
        return groups

    def _sampling(self, step: int, role: str) -> SamplingParams:
        digest = hashlib.blake2b(f"{self.config.seed}/{step}/{role}".encode(), digest_size=6).digest()
        return self.config.sampling(seed=int.from_bytes(digest, "little"))

    @torch.no_grad()
    def _log_ratio(self, prompts: Sequence[Prompt], ours: Sequence[Draws]) -> Tensor:
        """log pi - log anchor of the policy's draws; the working copy holds the anchor's weights here."""
        sequences = TokenSequences(
            [
                prompt.token_ids
                for prompt, drawn in zip(prompts, ours, strict=True)
                for _ in drawn.completions
            ],
            [ids for drawn in ours for ids in drawn.completion_token_ids],
        )
        anchor_logprobs = torch.empty(len(sequences))
        for rows in token_budget_batches(sequences.lengths(), self.config.max_tokens_per_batch):
            values = completion_logprobs(self.working.model, sequences.select(rows), self.config.temperature)
            anchor_logprobs[rows] = values.float().cpu()
        sampled = torch.tensor([sum(values) for drawn in ours for values in drawn.logprobs])
        return (sampled - anchor_logprobs).view(len(prompts), -1)

    def _tie_breaker(self, prompts: Sequence[Prompt], step: int) -> Tensor:
        m = self.method.anchor_draws
        keys = [sample_keys(f"{p.prompt_id}/tie/{step}", range(m), self.config.seed) for p in prompts]
        return torch.tensor([[float(key) / 2**64 for key in row] for row in keys])


def score_groups(groups: Sequence[Group], reward: CombinedReward) -> dict[str, list[str | None]]:
    """Fill in every group's rewards; returns the failures by reward name."""
    scores = reward.score_each(ScoreRequest.of(groups))
    aggregate = reward.aggregate({name: each.values for name, each in scores.items()})
    start = 0
    for group in groups:
        end = start + len(group)
        group.rewards_by_name = {name: each.values[start:end] for name, each in scores.items()}
        group.rewards = aggregate[start:end]
        start = end
    return {name: each.failures for name, each in scores.items()}


def reward_tensor(groups: Sequence[Group]) -> Tensor:
    """Aggregate rewards `[b, m]`, NaN where one failed."""
    return torch.tensor([[float("nan") if r is None else r for r in group.rewards or ()] for group in groups])


def _join(first: Draws, second: Draws) -> Draws:
    return Draws(
        first.completions + second.completions,
        first.completion_token_ids + second.completion_token_ids,
        first.finish_reasons + second.finish_reasons,
        first.logprobs + second.logprobs,
    )
