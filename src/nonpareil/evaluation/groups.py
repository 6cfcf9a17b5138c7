"""Lists of groups as rectangular tensors: rewards, lengths and finish reasons, matched by prompt id."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.records import SOURCE, Group, GroupNumbers


@dataclass(frozen=True)
class MatchedGroups:
    """Both sides' groups of the same prompts, row by row, in the order of prompt ids."""

    policy: list[Group]
    reference: list[Group]
    policy_rows: list[int]
    """Where each group stood in the caller's list; reorders the caller's tensors."""
    reference_rows: list[int]


def match_groups(policy_groups: Sequence[Group], reference_groups: Sequence[Group]) -> MatchedGroups:
    """Pair the two sides by prompt id; sorting makes every metric independent of the order given.

    Raises:
        DataError: a side is empty, repeats a prompt id or is ragged, or the sides hold different prompts.
    """
    policy_rows = _rows_by_prompt_id(policy_groups, "policy")
    reference_rows = _rows_by_prompt_id(reference_groups, "reference")
    if policy_rows.keys() != reference_rows.keys():
        only = {"policy": policy_rows.keys() - reference_rows.keys()}
        only["reference"] = reference_rows.keys() - policy_rows.keys()
        side = "policy" if only["policy"] else "reference"
        raise DataError(
            f"The two sides hold different prompts: {len(only['policy'])} ids only in the policy's groups, "
            f"{len(only['reference'])} only in the reference's (for example {min(only[side])!r}, {side}), "
            f"{len(policy_rows.keys() & reference_rows.keys())} in both. Draw both from the same prompts."
        )
    order = sorted(policy_rows)
    rows = [policy_rows[i] for i in order], [reference_rows[i] for i in order]
    policy = [policy_groups[row] for row in rows[0]]
    return MatchedGroups(policy, [reference_groups[row] for row in rows[1]], rows[0], rows[1])


def _rows_by_prompt_id(groups: Sequence[Group], side: str) -> dict[str, int]:
    if not groups:
        raise DataError(f"The {side} side has no groups.")
    group_size(groups, f"{side} groups")
    rows = {group.prompt_id: row for row, group in enumerate(groups)}
    if len(rows) < len(groups):
        twice = Counter(group.prompt_id for group in groups).most_common(1)[0][0]
        raise DataError(
            f"{len(groups) - len(rows)} of the {side} groups repeat a prompt id, for example {twice!r}."
        )
    return rows


def group_size(groups: Sequence[Group], side: str = "groups") -> int:
    """How many completions each group has.

    Raises:
        DataError: the groups differ in size, or have no completions.
    """
    size = len(groups[0])
    for group in groups:
        if len(group) != size:
            raise DataError(
                f"The {side} must have equally many completions each: {groups[0].prompt_id!r} has {size}, "
                f"{group.prompt_id!r} has {len(group)}."
            )
    if size == 0:
        raise DataError(f"The {side} have no completions.")
    return size


def rewards_of(groups: Sequence[Group], name: str | None = None) -> Tensor:
    """The rewards [b, m], float64, NaN where the reward failed; the aggregate unless a reward is named.

    Raises:
        DataError: a group was not scored with this reward, or has another number of rewards than completions.
    """
    rows = []
    for group in groups:
        values = group.rewards if name is None else group.rewards_by_name.get(name)
        if values is None:
            known = ", ".join(sorted(group.rewards_by_name)) or "none"
            what = "has no rewards" if name is None else f"has no reward named {name!r} (it has: {known})"
            raise DataError(f"Group {group.prompt_id!r} {what}. Score the groups first.")
        if len(values) != len(group):
            raise DataError(f"Group {group.prompt_id!r}: {len(values)} rewards, {len(group)} completions.")
        rows.append([float("nan") if value is None else float(value) for value in values])
    return torch.tensor(rows, dtype=torch.float64)


def lengths_of(groups: Sequence[Group]) -> Tensor:
    """Completion lengths [b, m] in tokens, the end token included; float64. NaN where no ids are known."""
    lengths = [[len(ids) or float("nan") for ids in g.completion_token_ids] for g in groups]
    return torch.tensor(lengths, dtype=torch.float64)


def stopped_of(groups: Sequence[Group]) -> Tensor:
    """1 where a completion ended with an end token, 0 where it was cut [b, m]; float64."""
    return torch.tensor([[r == "stop" for r in g.finish_reasons] for g in groups], dtype=torch.float64)


def distinct_ngrams(groups: Sequence[Group], size: int, num_completions: int) -> Tensor:
    """Distinct n-grams of token ids over all of them, within each prompt's first completions [b].

    Both sides must be asked for the same `num_completions`: the share falls as completions are added.
    NaN where no completion is `size` tokens long.
    """
    shares = []
    for group in groups:
        grams = [
            tuple(ids[start : start + size])
            for ids in group.completion_token_ids[:num_completions]
            for start in range(len(ids) - size + 1)
        ]
        shares.append(len(set(grams)) / len(grams) if grams else float("nan"))
    return torch.tensor(shares, dtype=torch.float64)


def numbers_of(groups: Sequence[Group]) -> GroupNumbers:
    """What a best-of-N curve reads of groups, in the order of prompt ids.

    Raises:
        DataError: no groups, or ragged or unscored ones.
    """
    if not groups:
        raise DataError("There are no groups to make a curve of.")
    group_size(groups)
    ordered = sorted(groups, key=lambda group: group.prompt_id)
    return GroupNumbers(
        [group.prompt_id for group in ordered],
        rewards_of(ordered).numpy(),
        lengths_of(ordered).numpy(),
        np.array([_num_unique(group) for group in ordered]),
        [group.columns.get(SOURCE) for group in ordered],
    )


def _num_unique(group: Group) -> int:
    ids = group.completion_token_ids
    # A server or vBoN's lines give no ids; then texts, of which two token sequences can make one.
    return len({tuple(one) for one in ids}) if all(ids) else len(set(group.completions))
