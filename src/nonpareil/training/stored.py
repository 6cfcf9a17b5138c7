"""Stored groups as training data: whether a method can be trained on them."""

from collections import Counter
from collections.abc import Sequence

import torch

from nonpareil.credits import CreditsByPrompt
from nonpareil.engines.finite import not_finite
from nonpareil.errors import DataError
from nonpareil.methods.base import Method, ScoredDraws, rewards_differ
from nonpareil.methods.credited import CreditedMethod, with_credits
from nonpareil.models.distributed import process_index
from nonpareil.records import Group, Prompt, prompt_of
from nonpareil.terminal import tell
from nonpareil.training.step.batch import reward_tensor
from nonpareil.training.stored_credits import check_credits_of


def prompts_of_stored(
    groups: Sequence[Group], method: Method, credits: CreditsByPrompt | None = None
) -> list[Prompt]:
    """The training prompts; says how many of the groups tell the method anything.

    Raises:
        DataError: as `check_stored`.
    """
    told = check_stored(groups, method, credits)
    if process_index() == 0:
        why = "the rewards that the method compares tie in the others"
        if isinstance(method, CreditedMethod):
            why = "the others have no credits, or none that tells candidates apart"
        rest = "" if told == len(groups) else f": {why}"
        tell(f"groups: {told} of {len(groups)} carry signal{rest}")
    return [prompt_of(group) for group in groups]


def check_stored(groups: Sequence[Group], method: Method, credits: CreditsByPrompt | None = None) -> int:
    """Refuse groups from which the method would learn nothing, or something else; returns how many carry signal.

    `credits`: of the groups' completions, for a method that reads them in place of rewards; None where they are
    still to be made.

    Raises:
        DataError: no groups, a prompt id twice, groups too small, unscored, rewards all null, too few or all
            equal; or, where their completions are trained on, no token ids or log-probs. Credits of other groups,
            or none that tell candidates apart.
    """
    if not groups:
        raise DataError("groups is empty; draw groups with `nonpareil sample`")
    twice, count = Counter(group.prompt_id for group in groups).most_common(1)[0]
    if count > 1:
        raise DataError(f"groups: {count} of them have the prompt id {twice!r}; ids must differ")
    least = method.smallest_group
    for group in groups:
        if len(group) < least:
            raise DataError(
                f"groups: {group.prompt_id!r} has {len(group)} completions, and {type(method).__name__} needs "
                f"{least} of them here; draw more (num_generations) or lower n"
            )
        if group.rewards is None:
            raise DataError(f"groups: {group.prompt_id!r} is not scored; score it with `nonpareil sample`")
        trains_on_them = method.policy_draws == 0
        whole = all(group.completion_token_ids) and all(group.logprobs)
        if trains_on_them and not whole:
            raise DataError(
                f"groups: {group.prompt_id!r} has no token ids or log-probs (vBoN's lines have none), and "
                f"{type(method).__name__} trains on the completions; draw groups with `nonpareil sample`"
            )
        if trains_on_them and (place := not_finite(group.logprobs)) is not None:
            raise DataError(
                f"groups: {group.prompt_id!r}, completion {place[0]}, token {place[1]} (counted from 0) has a "
                "log-prob that is NaN or infinite: what drew it gave no numbers; draw anew, in another dtype"
            )
    _check_rewards(groups, least, compared=credits is None)
    if credits is None and isinstance(method, CreditedMethod):
        return len(groups)  # their credits are still to be made
    if credits is not None:
        check_credits_of(groups, credits)
    told = int(_with_signal(groups, method, credits).sum())
    if not told and credits is not None:
        raise DataError(
            "credits: in none of the groups is there a completion whose credits tell one candidate from another, "
            "so nothing would be learnt: the value is constant, or the credits are of other prompts"
        )
    if not told:
        raise DataError(
            f"groups: in none of them do the rewards that {type(method).__name__} compares differ, so nothing "
            "would be learnt; lower n, draw more completions per prompt, or give a reward that tells them apart"
        )
    return told


def _with_signal(groups: Sequence[Group], method: Method, credits: CreditsByPrompt | None) -> torch.Tensor:
    """True at groups that tell the method anything: by its own targets, where it trains on nothing else."""
    rewards = reward_tensor(groups)
    if method.policy_draws:
        return rewards_differ(rewards)
    b, m = rewards.shape
    no_tokens = torch.zeros(b, m, 1)
    draws = ScoredDraws(
        policy_rewards=rewards[:, :0],
        anchor_rewards=rewards,
        policy_token_logprobs=no_tokens[:, :0],
        completion_mask=no_tokens[:, :0].bool(),
        anchor_logprobs_of_policy=no_tokens[:, :0, 0],
        anchor_token_logprobs=no_tokens,
        tie_breaker=no_tokens[..., 0],
    )
    if credits is not None:
        draws = with_credits(draws, [credits.get(group.prompt_id, ()) for group in groups])
    signal = method.targets(draws).signal
    return torch.ones(b, dtype=torch.bool) if signal is None else signal


def _check_rewards(groups: Sequence[Group], least: int, *, compared: bool) -> None:
    values = [[reward for reward in group.rewards or () if reward is not None] for group in groups]
    if not any(values):
        raise DataError("groups: every reward is null; see the reasons in manifest.json and score again")
    most = max(map(len, values))
    if most < least:
        raise DataError(
            f"groups: no prompt has more than {most} rewards that are not null, and {least} are needed; see the "
            "reasons in manifest.json and score again, draw more (num_generations), or lower n"
        )
    if compared and all(len(set(rewards)) <= 1 for rewards in values):
        raise DataError(
            "groups: all rewards of each prompt are equal, so no completion is better than another; "
            "give a reward that tells them apart, or draw more completions per prompt"
        )
