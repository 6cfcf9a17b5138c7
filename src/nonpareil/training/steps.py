"""One training step's draws: the policy's, and the anchor's fresh or stored ones, with rewards and log-probs."""

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nonpareil.constant_rewards import FEWEST_GROUPS, RewardSpread
from nonpareil.engines.sampling import sample_keys
from nonpareil.errors import DivergedError, RewardError
from nonpareil.methods.base import Method, ScoredDraws
from nonpareil.models.distributed import gather_shares, my_share, process_index
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Draws, Group, Prompt, SamplingParams, ScoreRequest
from nonpareil.rewards.combine import CombinedReward
from nonpareil.training.config import DistillationConfig
from nonpareil.training.drawing import Drawing, no_draws
from nonpareil.training.method import check_group_rewards
from nonpareil.training.not_finite import NotFinite, of_logprobs, refuse_all_bad


@dataclass(frozen=True)
class StepDraws:
    """What one step trains on and what is logged of it. Groups hold policy draws first, then anchor draws."""

    groups: list[Group]
    numbers: ScoredDraws
    num_policy: int
    sampler_logprobs: list[list[list[float]]] | None = None
    """Of the policy's tokens by prompt, where another engine than the trainer drew them; nats."""
    dropped: Sequence[NotFinite] = ()
    """Prompts of the step that are none of these groups: drawing or scoring them gave no numbers."""

    def without(self, rows: Container[int]) -> "StepDraws":
        """The step as it would have been drawn without some of its prompts."""
        kept = [row for row in range(len(self.groups)) if row not in rows]
        sampled = self.sampler_logprobs
        return replace(
            self,
            groups=[self.groups[row] for row in kept],
            numbers=self.numbers.select(kept),
            sampler_logprobs=[sampled[row] for row in kept] if sampled is not None else None,
        )

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

    def padded_tokens(self, row: int, places: list[int]) -> int:
        """What these completions of a group cost in one forward pass, prompts and padding included."""
        group = self.groups[row]
        longest = max(len(group.completion_token_ids[place]) for place in places)
        return len(places) * (len(group.prompt_token_ids) + longest)

    def tokens(self, row: int, places: list[int]) -> int:
        """Tokens of these completions of a group with their prompts, without padding."""
        group = self.groups[row]
        return sum(len(group.prompt_token_ids) + len(group.completion_token_ids[place]) for place in places)

    @property
    def width(self) -> int:
        """Tokens that each completion has room for; those of the longest one drawn."""
        return self.numbers.completion_mask.shape[-1]


class StepDrawer:
    """Draws and scores for one step after another; of several processes, each does its share of the prompts.

    `stored`: groups by prompt id that take the place of fresh anchor draws. Every random number follows from
    (seed, step, prompt, sample), so a resumed run draws the same, on any number of processes.
    """

    def __init__(
        self,
        make_drawing: Callable[[], Drawing],
        method: Method,
        reward: CombinedReward,
        config: DistillationConfig,
        stored: Mapping[str, Group] | None = None,
    ):
        self._make_drawing = make_drawing
        self.method, self.reward, self.config = method, reward, config
        self.stored = stored or {}
        self._spread = RewardSpread()
        check_group_rewards(reward, method, config, stored=bool(self.stored))

    @cached_property
    def drawing(self) -> Drawing:
        """Made when first needed: training on stored groups alone draws nothing."""
        return self._make_drawing()

    def draw(self, prompts: Sequence[Prompt], step: int) -> StepDraws:
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
        return StepDraws(groups, numbers, k, sampled or None, dropped)

    def _draw_share(self, prompts: Sequence[Prompt], step: int) -> "list[_DrawnPrompt]":
        """One process's prompts: drawn, compared with the anchor, and scored."""
        k, fresh = self.method.policy_draws, self.method.anchor_draws
        self.drawing.begin_step()
        sampling = self._sampling(step, "policy"), self._sampling(step, "anchor")
        drawn = self.drawing.draw(prompts, k, fresh, *sampling)
        sequences = TokenSequences.of(prompts, drawn.policy)
        by_token = self.drawing.token_logprobs("anchor", sequences, self.config.temperature)
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
        self.drawing.begin_step()
        sampling = self.config.sampling(seed)
        draws = self.drawing.draw(mine, 1, 0, sampling, sampling).policy
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
    """Aggregate rewards `[b, m]`, NaN where one failed, and where one group is smaller than another.

    float64, in which they are compared and averaged: rewards such as 1e8 + 0.1 would tie in float32.
    """
    rows = [[float("nan") if r is None else r for r in group.rewards or ()] for group in groups]
    return _rectangular(rows, torch.float64)


def _rectangular(rows: list[list[float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of numbers as one tensor, NaN behind the end of the shorter ones."""
    width = max(map(len, rows))
    filled = [row + [float("nan")] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=dtype).view(len(rows), width)


def _padded(logprobs: list[list[list[float]]], width: int) -> tuple[Tensor, Tensor]:
    """Token log-probs [b, k, width] with 0 behind each end, and the mask of real tokens; k is the most of a row."""
    padded = torch.zeros(len(logprobs), max(map(len, logprobs)), width)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    for row, draws in enumerate(logprobs):
        for index, values in enumerate(draws):
            padded[row, index, : len(values)] = torch.tensor(values)
            mask[row, index, : len(values)] = True
    return padded, mask


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
