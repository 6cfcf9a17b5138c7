"""What one training step trains on: groups, rewards and log-probs as tensors."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nonpareil.credits import Credits
from nonpareil.methods.base import ScoredDraws
from nonpareil.methods.credited import with_credits
from nonpareil.models.packing import even_sizes, row_width
from nonpareil.records import Group, Logged, ScoreRequest
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.step.logged import merged_log
from nonpareil.training.step.not_finite import NotFinite


@dataclass(frozen=True)
class PromptDraws:
    """What was drawn for one prompt of a step, scored."""

    group: Group
    """The policy's draws, then the anchor's or a stored group's."""
    anchor_logprobs_of_policy: list[float] = field(default_factory=list)
    """Summed over each of the policy's completions, nats."""
    sampler_logprobs: list[list[float]] | None = None
    """As in `StepBatch`."""
    not_finite: NotFinite | None = None
    credits: Sequence[Credits | None] | None = None
    """Of a stored group's completions; None where the method reads none."""
    failure: str | None = None
    """A reason why a reward failed, of this prompt or another one of the same process."""
    logged: Logged = field(default_factory=Logged)
    """What rewards said of the prompt's fresh draws; a process's first prompt has the metrics of its share."""


@dataclass(frozen=True)
class StepBatch:
    """What one step trains on and what is logged of it. Groups hold policy draws first, then anchor draws."""

    groups: list[Group]
    draws: ScoredDraws
    num_policy: int
    sampler_logprobs: list[list[list[float]]] | None = None
    """Of the policy's tokens by prompt, where another engine than the trainer drew them; nats."""
    dropped: Sequence[NotFinite] = ()
    """Prompts of the step that are none of these groups: drawing or scoring them gave no numbers."""
    logged: Sequence[Logged] = ()
    """As in `PromptDraws`, by prompt."""

    @classmethod
    def of(
        cls,
        drawn: Sequence[PromptDraws],
        num_policy: int,
        tie_breaker: Tensor,
        dropped: Sequence[NotFinite],
        rewards: Tensor,
    ) -> "StepBatch":
        """Scored draws as tensors; `tie_breaker` as in `ScoredDraws`; `rewards` [b, k + m] are what is compared."""
        k, groups = num_policy, [one.group for one in drawn]
        width = max(len(ids) for group in groups for ids in group.completion_token_ids)
        policy_tokens, mask = _padded([group.logprobs[:k] for group in groups], width)
        anchor_tokens, _ = _padded([group.logprobs[k:] for group in groups], width)
        of_policy = [one.anchor_logprobs_of_policy for one in drawn]
        draws = ScoredDraws(
            policy_rewards=rewards[:, :k],
            anchor_rewards=rewards[:, k:],
            policy_token_logprobs=policy_tokens,
            completion_mask=mask,
            anchor_logprobs_of_policy=torch.tensor(of_policy).view(len(groups), k),
            anchor_token_logprobs=anchor_tokens,
            tie_breaker=tie_breaker,
        )
        credits = [one.credits for one in drawn if one.credits is not None]
        if credits:
            draws = with_credits(draws, credits)
        sampled = [one.sampler_logprobs for one in drawn if one.sampler_logprobs is not None]
        return cls(groups, draws, k, sampled or None, dropped, [one.logged for one in drawn])

    def without(self, rows: Container[int]) -> "StepBatch":
        """The step as it would have been drawn without some of its prompts."""
        kept = [row for row in range(len(self.groups)) if row not in rows]
        sampled = self.sampler_logprobs
        return replace(
            self,
            groups=[self.groups[row] for row in kept],
            draws=self.draws.select(kept),
            sampler_logprobs=[sampled[row] for row in kept] if sampled is not None else None,
            logged=[self.logged[row] for row in kept],
        )

    def ended(self) -> Tensor:
        """Which completions ended by themselves [b, k + m], False where a group is smaller than another."""
        ended = [[reason == "stop" for reason in group.finish_reasons] for group in self.groups]
        width = max(map(len, ended), default=0)
        return torch.tensor([row + [False] * (width - len(row)) for row in ended]).view(len(ended), width)

    def log_sampling_ratio(self) -> list[list[Tensor]]:
        """log pi - log sampler of each token the policy drew, by prompt and draw; empty where they are one."""
        if self.sampler_logprobs is None:
            return []
        return [
            [
                torch.tensor(ours) - torch.tensor(theirs)
                for ours, theirs in zip(group.logprobs[: self.num_policy], sampled, strict=True)
            ]
            for group, sampled in zip(self.groups, self.sampler_logprobs, strict=True)
        ]

    def importance_weights(self, cap: float) -> Tensor:
        """min(pi / sampler, cap) of each of the policy's draws `[b, k]`, over the whole completion."""
        ratios = self.log_sampling_ratio()
        if not ratios:
            return torch.ones(len(self.groups), self.num_policy)
        sums = torch.stack([torch.stack([tokens.sum() for tokens in row]) for row in ratios])
        return sums.exp().clamp(max=cap)

    def padded_tokens(self, row: int, places: Sequence[int], per_row: int) -> int:
        """What these completions of a group cost in one forward pass, prompts and padding included."""
        group = self.groups[row]
        widths, lengths = [], [len(group.completion_token_ids[place]) for place in places]
        for size in even_sizes(len(places), per_row):
            widths.append(row_width(len(group.prompt_token_ids), lengths[:size]))
            lengths = lengths[size:]
        return len(widths) * max(widths)

    def tokens(self, row: int, places: Sequence[int], per_row: int = 1) -> int:
        """Tokens of these completions of a group with their prompts, each once per row, without padding."""
        group = self.groups[row]
        prompts = len(even_sizes(len(places), per_row)) * len(group.prompt_token_ids)
        return prompts + sum(len(group.completion_token_ids[place]) for place in places)

    @property
    def width(self) -> int:
        """Tokens that each completion has room for; those of the longest one drawn."""
        return self.draws.completion_mask.shape[-1]


def score_groups(
    groups: Sequence[Group], reward: CombinedReward, trainer_state: Any = None
) -> tuple[dict[str, list[str | None]], Logged]:
    """Fill in every group's rewards; returns the failures by reward name, and what the rewards logged.

    Raises:
        RewardError: as `CombinedReward.score_each`, or two rewards that log a column of one name.
    """
    scores = reward.score_each(replace(ScoreRequest.of(groups), trainer_state=trainer_state))
    aggregate = reward.aggregate({name: each.values for name, each in scores.items()})
    start = 0
    for group in groups:
        end = start + len(group)
        group.rewards_by_name = {name: each.values[start:end] for name, each in scores.items()}
        group.rewards = aggregate[start:end]
        start = end
    return {name: each.failures for name, each in scores.items()}, merged_log(scores)


def reward_tensor(groups: Sequence[Group]) -> Tensor:
    """Aggregate rewards `[b, m]`, NaN where one failed, and where one group is smaller than another.

    float64, in which they are compared and averaged: rewards such as 1e8 + 0.1 would tie in float32.
    """
    return _tensor([group.rewards or () for group in groups])


def standardized_tensor(groups: Sequence[Group], reward: CombinedReward) -> Tensor:
    """As `reward_tensor`, of each group's rewards on one scale; see `CombinedReward.aggregate_group`."""
    return _tensor([reward.aggregate_group(group.rewards_by_name) for group in groups])


def _tensor(values: Sequence[Sequence[float | None]]) -> Tensor:
    rows = [[float("nan") if r is None else r for r in row] for row in values]
    width = max(map(len, rows))
    filled = [row + [float("nan")] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.float64).view(len(rows), width)


def _padded(logprobs: list[list[list[float]]], width: int) -> tuple[Tensor, Tensor]:
    """Token log-probs [b, k, width] with 0 behind each end, and the mask of real tokens; k is the most of a row."""
    padded = torch.zeros(len(logprobs), max(map(len, logprobs)), width)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    for row, draws in enumerate(logprobs):
        for index, values in enumerate(draws):
            padded[row, index, : len(values)] = torch.tensor(values)
            mask[row, index, : len(values)] = True
    return padded, mask
