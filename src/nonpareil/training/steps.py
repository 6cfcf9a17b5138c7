"""One training step's draws: the policy's, and the anchor's fresh or stored ones, with rewards and log-probs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.engines.sampling import sample_keys
from nonpareil.engines.transformers import TransformersEngine
from nonpareil.errors import RewardError
from nonpareil.methods.base import Method, ScoredDraws
from nonpareil.models.anchors import Anchor, WorkingCopy
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

    def padded_tokens(self, row: int, places: list[int]) -> int:
        """What these completions of a group cost in one forward pass, prompts and padding included."""
        group = self.groups[row]
        longest = max(len(group.completion_token_ids[place]) for place in places)
        return len(places) * (len(group.prompt_token_ids) + longest)


class StepDrawer:
    """Draws and scores for one step after another, with one working copy for policy and anchor.

    `stored`: groups by prompt id that take the place of fresh anchor draws. Every random number follows from
    (seed, step, prompt, sample), so a resumed run draws the same.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        method: Method,
        reward: CombinedReward,
        config: DistillationConfig,
        stored: Mapping[str, Group] | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.method, self.reward, self.config = method, reward, config
        self.stored = stored or {}

    @cached_property
    def working(self) -> WorkingCopy:
        """Made when first needed: training on stored groups alone draws nothing."""
        args = self.config
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else self.model.dtype
        return WorkingCopy(self.model, dtype)

    @cached_property
    def engine(self) -> TransformersEngine:
        """Over the working copy."""
        tokens = self.config.max_tokens_per_batch
        return TransformersEngine(self.working.model, self.tokenizer, max_tokens_per_batch=tokens)

    def draw(
        self, policy: torch.nn.Module, anchor: Anchor | None, prompts: Sequence[Prompt], step: int
    ) -> StepDraws:
        """Draw, score and compare with the anchor. See `ScoredDraws`.

        Raises:
            RewardError: every reward of the step failed; training on nothing would look like training.
        """
        k, fresh = self.method.policy_draws, self.method.anchor_draws
        ours = theirs = [Draws([], [], [], []) for _ in prompts]
        if k:
            self.working.load(policy)
            ours = self.engine.draw(prompts, k, self._sampling(step, "policy"))
        if anchor is not None:
            self.working.load(anchor.module)
        if fresh:
            theirs = self.engine.draw(prompts, fresh, self._sampling(step, "anchor"))
        anchor_logprobs_of_policy = self._anchor_logprobs(prompts, ours)
        groups = [
            Group.of(p, _join(mine, other)) for p, mine, other in zip(prompts, ours, theirs, strict=True)
        ]
        if k + fresh:
            self._score(groups, step)
        if self.stored:
            groups = [_with_stored(group, self.stored[group.prompt_id]) for group in groups]
        width = max(len(ids) for group in groups for ids in group.completion_token_ids)
        tokens, mask = _padded([drawn.logprobs for drawn in ours], width)
        rewards = reward_tensor(groups)
        numbers = ScoredDraws(
            policy_rewards=rewards[:, :k],
            anchor_rewards=rewards[:, k:],
            policy_token_logprobs=tokens,
            completion_mask=mask,
            anchor_logprobs_of_policy=anchor_logprobs_of_policy,
            # A draw that a smaller group lacks is told by its reward; NaN here would survive a weight of 0.
            anchor_logprobs=_rectangular([[sum(v) for v in g.logprobs[k:]] for g in groups]).nan_to_num(0.0),
            tie_breaker=self._tie_breaker(prompts, step, rewards.shape[1] - k),
        )
        return StepDraws(groups, numbers, k)

    def draw_policy(self, policy: torch.nn.Module, prompts: Sequence[Prompt], seed: int) -> list[Group]:
        """One scored completion of the policy a prompt, for evaluation during training."""
        self.working.load(policy)
        draws = self.engine.draw(prompts, 1, self.config.sampling(seed))
        groups = [Group.of(prompt, drawn) for prompt, drawn in zip(prompts, draws, strict=True)]
        score_groups(groups, self.reward)
        return groups

    def _score(self, groups: Sequence[Group], step: int) -> None:
        failures = score_groups(groups, self.reward)
        if reward_tensor(groups).isnan().all():
            reason = next(reason for reasons in failures.values() for reason in reasons if reason)
            raise RewardError(f"every reward of step {step} failed; the first reason: {reason}")

    def _sampling(self, step: int, role: str) -> SamplingParams:
        digest = hashlib.blake2b(f"{self.config.seed}/{step}/{role}".encode(), digest_size=6).digest()
        return self.config.sampling(seed=int.from_bytes(digest, "little"))

    @torch.no_grad()
    def _anchor_logprobs(self, prompts: Sequence[Prompt], ours: Sequence[Draws]) -> Tensor:
        """log anchor of the policy's draws [b, k]; the working copy holds the anchor's weights here."""
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
        return anchor_logprobs.view(len(prompts), self.method.policy_draws)

    def _tie_breaker(self, prompts: Sequence[Prompt], step: int, m: int) -> Tensor:
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
    """Aggregate rewards `[b, m]`, NaN where one failed, and where one group is smaller than another."""
    return _rectangular([[float("nan") if r is None else r for r in group.rewards or ()] for group in groups])


def _rectangular(rows: list[list[float]]) -> Tensor:
    """Rows of numbers as one tensor, NaN behind the end of the shorter ones."""
    width = max(map(len, rows))
    filled = [row + [float("nan")] * (width - len(row)) for row in rows]
    return torch.tensor(filled).view(len(rows), width)


def _padded(logprobs: list[list[list[float]]], width: int) -> tuple[Tensor, Tensor]:
    """Token log-probs [b, k, width] with 0 behind each end, and the mask of real tokens."""
    padded = [[values + [0.0] * (width - len(values)) for values in rows] for rows in logprobs]
    mask = [[[i < len(values) for i in range(width)] for values in rows] for rows in logprobs]
    shape = (len(logprobs), len(logprobs[0]), width)
    return torch.tensor(padded).view(shape), torch.tensor(mask, dtype=torch.bool).view(shape)


def _with_stored(group: Group, stored: Group) -> Group:
    """A step's group with the stored completions behind its own."""
    joined = _join(
        Draws(group.completions, group.completion_token_ids, group.finish_reasons, group.logprobs),
        Draws(stored.completions, stored.completion_token_ids, stored.finish_reasons, stored.logprobs),
    )
    names = dict.fromkeys((*group.rewards_by_name, *stored.rewards_by_name))
    return Group(
        group.prompt_id,
        group.prompt,
        group.prompt_token_ids,
        joined.completions,
        joined.completion_token_ids,
        joined.finish_reasons,
        joined.logprobs,
        rewards_by_name={
            name: group.rewards_by_name.get(name, [None] * len(group))
            + stored.rewards_by_name.get(name, [None] * len(stored))
            for name in names
        },
        rewards=[*(group.rewards or []), *(stored.rewards or [])],
        columns=group.columns,
    )


def _join(first: Draws, second: Draws) -> Draws:
    return Draws(
        first.completions + second.completions,
        first.completion_token_ids + second.completion_token_ids,
        first.finish_reasons + second.finish_reasons,
        first.logprobs + second.logprobs,
    )
