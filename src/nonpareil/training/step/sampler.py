"""One step: drawing, scoring, and the comparison with the anchor; of several processes each does its share."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nonpareil.constant_rewards import FEWEST_GROUPS, RewardSpread
from nonpareil.credits import CreditsByPrompt
from nonpareil.engines.sampling import sample_keys
from nonpareil.errors import DivergedError, RewardError
from nonpareil.methods.base import Method
from nonpareil.models.distributed import gather_shares, my_share, of_each_process, process_index
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Draws, Group, Logged, Prompt, SamplingParams
from nonpareil.rewards.combine import CombinedReward
from nonpareil.terminal import tell
from nonpareil.training.actors.base import Actors, no_draws
from nonpareil.training.config import DistillationConfig
from nonpareil.training.phases import StepPhases
from nonpareil.training.settings.rewards import EACH_FIRST
from nonpareil.training.step.batch import (
    PromptDraws,
    StepBatch,
    reward_tensor,
    score_groups,
    standardized_tensor,
)
from nonpareil.training.step.logged import split_log
from nonpareil.training.step.not_finite import NotFinite, of_logprobs, refuse_all_bad

NOT_APPLICABLE = (
    "Where a function does not apply to a prompt let it return 0 for all of its completions, not None: that "
    "compares them by the others (TRL leaves a None out of the sum)"
)


class StepSampler:
    """Draws and scores for one step after another; of several processes, each does its share of the prompts.

    `stored`: groups by prompt id that take the place of fresh anchor draws; `credits`: those of their completions,
    where the method reads them; `trainer_state`: what rewards are told of the training. Every random number follows
    from (seed, step, prompt, sample), so a resumed run draws the same, on any number of processes.
    """

    def __init__(
        self,
        make_actors: Callable[[], Actors],
        method: Method,
        reward: CombinedReward,
        config: DistillationConfig,
        stored: Mapping[str, Group] | None = None,
        *,
        credits: CreditsByPrompt | None = None,
        phases: StepPhases | None = None,
        trainer_state: Callable[[], Any] = lambda: None,
    ):
        self._make_actors = make_actors
        self.actors: Actors | None = None
        self.method, self.reward, self.config = method, reward, config
        self.stored, self.credits = stored or {}, credits
        self.phases = phases or StepPhases()
        self._trainer_state = trainer_state
        self._spread = RewardSpread()
        self._missing_told = False

    def start(self) -> Actors:
        """Make what draws, unless it is there: for most trainings a second model, for some an engine beside it."""
        if self.actors is None:
            self.actors = self._make_actors()
            self.actors.on_progress = self.phases.update
        return self.actors

    def release(self) -> None:
        """End what draws beside the trainer, and holds memory for it; nothing can be drawn afterwards."""
        if self.actors is not None:
            self.actors.release()

    def draw(self, prompts: Sequence[Prompt], step: int) -> StepBatch:
        """Draw, score and compare with the anchor, for all prompts; every process returns all. See `ScoredDraws`.

        Raises:
            RewardError: every reward of the step failed; training on nothing would look like training.
            DivergedError: no prompt's log-probs are numbers.
        """
        drawn, dropped = self._draw_in_all_processes(prompts, step)
        if self.stored:
            drawn = [self._with_stored(one) for one in drawn]
        groups = [one.group for one in drawn]
        self._tell_of_constant_rewards(groups)
        self._tell_of_missing_rewards(groups, step)
        each_first = self.config.multi_objective_aggregation == EACH_FIRST
        rewards = standardized_tensor(groups, self.reward) if each_first else reward_tensor(groups)
        return StepBatch.of(
            drawn, self.method.policy_draws, self._tie_breaker(groups, step), dropped, rewards
        )

    def _with_stored(self, drawn: PromptDraws) -> PromptDraws:
        """With the prompt's stored group behind its draws."""
        prompt_id = drawn.group.prompt_id
        credits = None if self.credits is None else self.credits.get(prompt_id, ())
        return replace(drawn, group=drawn.group.joined(self.stored[prompt_id]), credits=credits)

    def _draw_in_all_processes(
        self, prompts: Sequence[Prompt], step: int
    ) -> tuple[list[PromptDraws], list[NotFinite]]:
        """What was drawn for each prompt, and the prompts left out since their log-probs are no numbers."""
        if not self.method.policy_draws + self.method.anchor_draws:  # training on stored groups alone
            return [PromptDraws(Group.of(p, d)) for p, d in zip(prompts, no_draws(prompts), strict=True)], []
        every = gather_shares(self._draw_share(my_share(prompts), step))
        dropped = [one.not_finite for one in every if one.not_finite]
        drawn = [one for one in every if not one.not_finite]
        if not drawn:
            refuse_all_bad(step + 1, dropped)
        groups = [one.group for one in drawn]
        if reward_tensor(groups).isnan().all():
            reasons = (one.failure for one in drawn if one.failure)
            reason = next(reasons, "their weighted sum is no number (reward_weights)")
            values = [one for group in groups for each in group.rewards_by_name.values() for one in each]
            if None in values and any(one is not None for one in values):
                raise RewardError(
                    f"no completion of step {step + 1} has all of its rewards ({', '.join(self.reward.names)}), "
                    f"without which it counts for nothing; the first reason: {reason}. {NOT_APPLICABLE}"
                )
            raise RewardError(f"every reward of step {step + 1} failed; the first reason: {reason}")
        return drawn, dropped

    def _draw_share(self, prompts: Sequence[Prompt], step: int) -> list[PromptDraws]:
        """One process's prompts: drawn, compared with the anchor, and scored."""
        k, m = self.method.policy_draws, self.method.anchor_draws
        actors = self.start()
        actors.begin_step()
        what = f"{k + m} completions for each of {len(prompts)} prompts"
        self.phases.begin("draw", step, what, total=len(prompts) * ((k > 0) + (m > 0)))
        drawn = actors.draw(prompts, k, m, self._sampling(step, "policy"), self._sampling(step, "anchor"))
        sequences = TokenSequences.of(prompts, drawn.policy)
        by_anchor = iter(actors.token_logprobs("anchor", sequences, self.config.temperature))
        sampled: Iterable[Any] = drawn.sampler_logprobs or [None] * len(prompts)
        found = []
        for prompt, ours, theirs, sampler in zip(prompts, drawn.policy, drawn.anchor, sampled, strict=True):
            tokens = [next(by_anchor) for _ in range(k)]
            group = Group.of(prompt, ours).joined(Group.of(prompt, theirs))
            bad = _not_finite(prompt, ours, theirs, tokens)
            found.append(PromptDraws(group, [each.sum().item() for each in tokens], sampler, bad))
        groups = [one.group for one in found if not one.not_finite]
        self.phases.begin("score", step, f"{sum(map(len, groups))} completions")
        failures, logged = (
            score_groups(groups, self.reward, self._trainer_state()) if groups else ({}, Logged())
        )
        reason = next((reason for reasons in failures.values() for reason in reasons if reason), None)
        parts = iter(split_log(logged, [len(group) for group in groups]))
        return [
            replace(one, failure=reason, logged=Logged() if one.not_finite else next(parts)) for one in found
        ]

    def draw_policy(self, prompts: Sequence[Prompt], seed: int) -> tuple[list[Group], list[Logged]]:
        """One scored completion of the policy per prompt, for evaluation in training, and what rewards logged."""
        mine = my_share(prompts)
        actors = self.start()
        actors.begin_step()
        sampling = self.config.sampling(seed)
        self.phases.begin("evaluate", None, total=len(mine))
        draws = actors.draw(mine, 1, 0, sampling, sampling).policy
        groups = [Group.of(prompt, drawn) for prompt, drawn in zip(mine, draws, strict=True)]
        logged = score_groups(groups, self.reward, self._trainer_state())[1] if groups else Logged()
        every = gather_shares(groups)
        for group in every:
            if (bad := of_logprobs(group.prompt_id, {"of the policy's draws": group.logprobs})) is not None:
                raise DivergedError(f"evaluation: {bad}")
        return every, of_each_process(logged)

    def _tell_of_constant_rewards(self, groups: Sequence[Group]) -> None:
        if len(self.reward.names) > 1 and process_index() == 0:
            self._spread.add_all(group.rewards_by_name for group in groups)
            self._spread.tell(self.reward.names, str(self.config.output_dir), FEWEST_GROUPS)

    def _tell_of_missing_rewards(self, groups: Sequence[Group], step: int) -> None:
        """Say once that prompts are lost to a reward that gives none of their completions any, though others do."""
        if self._missing_told or len(self.reward.names) < 2 or process_index() > 0:
            return
        for name in self.reward.names:
            lost = [group for group in groups if _lacks(group, name)]
            if lost:
                self._missing_told = True
                tell(
                    f"step {step + 1}: reward {name!r} gave no completion of {len(lost)} of {len(groups)} prompts "
                    "a number, and others did; a completion counts with all of its rewards alone, so these prompts "
                    f"are not trained on. {NOT_APPLICABLE}"
                )
                return

    def _sampling(self, step: int, role: str) -> SamplingParams:
        digest = hashlib.blake2b(f"{self.config.seed}/{step}/{role}".encode(), digest_size=6).digest()
        return self.config.sampling(seed=int.from_bytes(digest, "little"))

    def _tie_breaker(self, groups: Sequence[Group], step: int) -> Tensor:
        m = max(map(len, groups)) - self.method.policy_draws
        keys = [sample_keys(f"{g.prompt_id}/tie/{step}", range(m), self.config.seed) for g in groups]
        return torch.tensor([[float(key) / 2**64 for key in row] for row in keys])


def _lacks(group: Group, name: str) -> bool:
    """Whether a reward is null for all of a group's completions, and another one for none."""
    nulls = {each: [value is None for value in values] for each, values in group.rewards_by_name.items()}
    return all(nulls.get(name, [False])) and any(not any(of_one) for of_one in nulls.values())


def _not_finite(prompt: Prompt, ours: Draws, theirs: Draws, by_anchor: Sequence[Tensor]) -> NotFinite | None:
    return of_logprobs(
        prompt.prompt_id,
        {
            "of the policy's draws": ours.logprobs,
            "of the anchor's draws": theirs.logprobs,
            "that the anchor gives the policy's draws": [tokens.tolist() for tokens in by_anchor],
        },
    )
