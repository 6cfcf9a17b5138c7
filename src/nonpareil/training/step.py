"""One step: drawing, scoring, and the comparison with the anchor; of several processes each does its share."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nonpareil.constant_rewards import FEWEST_GROUPS, RewardSpread
from nonpareil.engines.sampling import sample_keys
from nonpareil.errors import DivergedError, RewardError
from nonpareil.methods.base import Method, ScoredDraws
from nonpareil.models.distributed import gather_shares, my_share, process_index
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Group, Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.actors.base import Actors, no_draws
from nonpareil.training.batch import StepBatch, _join, _padded, _with_stored, reward_tensor, score_groups
from nonpareil.training.config import DistillationConfig
from nonpareil.training.method import check_group_rewards
from nonpareil.training.not_finite import NotFinite, of_logprobs, refuse_all_bad


class StepSampler:
    """Draws and scores for one step after another; of several processes, each does its share of the prompts.

    `stored`: groups by prompt id that take the place of fresh anchor draws. Every random number follows from
    (seed, step, prompt, sample), so a resumed run draws the same, on any number of processes.
    """

    def __init__(
        self,
        make_actors: Callable[[], Actors],
        method: Method,
        reward: CombinedReward,
        config: DistillationConfig,
        stored: Mapping[str, Group] | None = None,
    ):
        self._make_actors = make_actors
        self.method, self.reward, self.config = method, reward, config
        self.stored = stored or {}
        self._spread = RewardSpread()
        check_group_rewards(reward, method, config, stored=bool(self.stored))

    @cached_property
    def actors(self) -> Actors:
        """Made when first needed: training on stored groups alone draws nothing."""
        return self._make_actors()

    def draw(self, prompts: Sequence[Prompt], step: int) -> StepBatch:
        """Draw, score and compare with the anchor, for all prompts; every process returns all. See `ScoredDraws`.

        Raises:
            RewardError: every reward of the step failed; training on nothing would look like training.
            DivergedError: no prompt's log-probs are numbers.
        """
        dropped: list[NotFinite] = []
        k, fresh = self.method.policy_draws, self.method.anchor_draws
        if k + fresh:
            parts = gather_shares(self._draw_share(my_share(prompts), step))
            dropped = [part.not_finite for part in parts if part.not_finite]
            prompts = [p for p, part in zip(prompts, parts, strict=True) if not part.not_finite]
            parts = [part for part in parts if not part.not_finite]
            if not parts:
                refuse_all_bad(step + 1, dropped)
            groups = [part.group for part in parts]
            sampled = [part.sampler_logprobs for part in parts if part.sampler_logprobs is not None]
            self._check_rewards(groups, [part.failure for part in parts], step)
            of_policy = torch.tensor([part.anchor_logprobs_of_policy for part in parts])
        else:
            groups = [Group.of(p, d) for p, d in zip(prompts, no_draws(prompts), strict=True)]
            of_policy, sampled = torch.empty(len(prompts), 0), []
        if self.stored:
            groups = [_with_stored(group, self.stored[group.prompt_id]) for group in groups]
        if len(self.reward.names) > 1 and process_index() == 0:
            self._spread.add_all(group.rewards_by_name for group in groups)
            self._spread.tell(self.reward.names, str(self.config.output_dir), FEWEST_GROUPS)
        width = max(len(ids) for group in groups for ids in group.completion_token_ids)
        tokens, mask = _padded([group.logprobs[:k] for group in groups], width)
        rewards = reward_tensor(groups)
        numbers = ScoredDraws(
            policy_rewards=rewards[:, :k],
            anchor_rewards=rewards[:, k:],
            policy_token_logprobs=tokens,
            completion_mask=mask,
            anchor_logprobs_of_policy=of_policy.view(len(groups), k),
            anchor_token_logprobs=_padded([g.logprobs[k:] for g in groups], width)[0],
            tie_breaker=self._tie_breaker(prompts, step, rewards.shape[1] - k),
        )
        return StepBatch(groups, numbers, k, sampled or None, dropped)

    def _draw_share(self, prompts: Sequence[Prompt], step: int) -> "list[_DrawnPrompt]":
        """One process's prompts: drawn, compared with the anchor, and scored."""
        k, fresh = self.method.policy_draws, self.method.anchor_draws
        self.actors.begin_step()
        sampling = self._sampling(step, "policy"), self._sampling(step, "anchor")
        drawn = self.actors.draw(prompts, k, fresh, *sampling)
        sequences = TokenSequences.of(prompts, drawn.policy)
        by_token = self.actors.token_logprobs("anchor", sequences, self.config.temperature)
        of_policy = [values.sum().item() for values in by_token]
        pairs = zip(drawn.policy, drawn.anchor, strict=True)
        groups = [Group.of(p, _join(*pair)) for p, pair in zip(prompts, pairs, strict=True)]
        bad = [
            of_logprobs(
                group.prompt_id,
                {
                    "of the policy's draws": ours.logprobs,
                    "of the anchor's draws": theirs.logprobs,
                    "that the anchor gives the policy's draws": [
                        values.tolist() for values in by_token[i * k : (i + 1) * k]
                    ],
                },
            )
            for i, (group, ours, theirs) in enumerate(zip(groups, drawn.policy, drawn.anchor, strict=True))
        ]
        scored = [group for group, why in zip(groups, bad, strict=True) if why is None]
        failures = score_groups(scored, self.reward) if scored else {}
        reason = next((reason for reasons in failures.values() for reason in reasons if reason), None)
        sampled = drawn.sampler_logprobs
        return [
            _DrawnPrompt(
                group, of_policy[i * k : (i + 1) * k], reason, sampled[i] if sampled else None, bad[i]
            )
            for i, group in enumerate(groups)
        ]

    def draw_policy(self, prompts: Sequence[Prompt], seed: int) -> list[Group]:
        """One scored completion of the policy a prompt, for evaluation during training."""
        mine = my_share(prompts)
        self.actors.begin_step()
        sampling = self.config.sampling(seed)
        draws = self.actors.draw(mine, 1, 0, sampling, sampling).policy
        groups = [Group.of(prompt, drawn) for prompt, drawn in zip(mine, draws, strict=True)]
        if groups:
            score_groups(groups, self.reward)
        every = gather_shares(groups)
        for group in every:
            if (bad := of_logprobs(group.prompt_id, {"of the policy's draws": group.logprobs})) is not None:
                raise DivergedError(f"evaluation: {bad}")
        return every

    def _check_rewards(self, groups: Sequence[Group], reasons: Sequence[str | None], step: int) -> None:
        if reward_tensor(groups).isnan().all():
            reason = next(filter(None, reasons), "their weighted sum is no number (reward_weights)")
            raise RewardError(f"every reward of step {step + 1} failed; the first reason: {reason}")

    def _sampling(self, step: int, role: str) -> SamplingParams:
        digest = hashlib.blake2b(f"{self.config.seed}/{step}/{role}".encode(), digest_size=6).digest()
        return self.config.sampling(seed=int.from_bytes(digest, "little"))

    def _tie_breaker(self, prompts: Sequence[Prompt], step: int, m: int) -> Tensor:
        keys = [sample_keys(f"{p.prompt_id}/tie/{step}", range(m), self.config.seed) for p in prompts]
        return torch.tensor([[float(key) / 2**64 for key in row] for row in keys])


@dataclass(frozen=True)
class _DrawnPrompt:
    """What one process found out about one prompt."""

    group: Group
    anchor_logprobs_of_policy: list[float]
    failure: str | None
    """A reason why a reward of the same share failed."""
    sampler_logprobs: list[list[float]] | None
    not_finite: NotFinite | None
