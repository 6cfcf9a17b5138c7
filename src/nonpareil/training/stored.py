"""Stored groups as training data: whether a method can be trained on them."""

from collections import Counter
from collections.abc import Sequence

from nonpareil.engines.finite import not_finite
from nonpareil.errors import DataError
from nonpareil.methods.base import Method
from nonpareil.records import Group


def check_stored(groups: Sequence[Group], method: Method) -> None:
    """Refuse groups from which the method would learn nothing, or something else.

    Raises:
        DataError: no groups, a prompt id twice, groups too small, unscored, rewards all null, too few or all
            equal; or, where their completions are trained on, no token ids or log-probs.
    """
    if not groups:
        raise DataError("groups is empty; draw groups with `nonpareil sample`")
    twice, count = Counter(group.prompt_id for group in groups).most_common(1)[0]
    if count > 1:
        raise DataError(f"groups: {count} of them have the prompt id {twice!r}; ids must differ")
    least = getattr(method, "smallest_group", 1)
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
    _check_rewards(groups, least)


def _check_rewards(groups: Sequence[Group], least: int) -> None:
    values = [[reward for reward in group.rewards or () if reward is not None] for group in groups]
    if not any(values):
        raise DataError("groups: every reward is null; see the reasons in manifest.json and score again")
    most = max(map(len, values))
    if most < least:
        raise DataError(
            f"groups: no prompt has more than {most} rewards that are not null, and {least} are needed; see the "
            "reasons in manifest.json and score again, draw more (num_generations), or lower n"
        )
    if all(len(set(rewards)) <= 1 for rewards in values):
        raise DataError(
            "groups: all rewards of each prompt are equal, so no completion is better than another; "
            "give a reward that tells them apart, or draw more completions a prompt"
        )
