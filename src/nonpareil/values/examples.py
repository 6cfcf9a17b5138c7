"""Stored groups as examples for a value: completions with the distribution of their quantile, prompts held out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.maths.target_weights import quantile_bins
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Group

FEWEST_PROMPTS, FEWEST_HELD_OUT = 20, 8
"""Of groups, and of those among them that are not fitted: of fewer nobody can say how good a value is."""


@dataclass(frozen=True)
class Examples:
    """Completions whose reward is known, prompt by prompt."""

    sequences: TokenSequences
    labels: Float[Tensor, "b w"]
    """How much of each one's quantile lies in each bin."""
    prompts: list[int]
    """Of each, the number of its prompt, from 0 on."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_prompts(self) -> int:
        """How many there are."""
        return self.prompts[-1] + 1 if self.prompts else 0

    @classmethod
    def of(cls, groups: Sequence[Group], bins: int) -> "Examples":
        """Of groups; failed rewards take no part, nor do groups with fewer than two."""
        prompt_ids: list[list[int]] = []
        completion_ids: list[list[int]] = []
        labels: list[Tensor] = []
        prompts: list[int] = []
        for group in groups:
            rewards = _rewards_of(group)
            usable = (~rewards.isnan()).nonzero()[:, 0].tolist()
            if len(usable) < 2:
                continue
            number = prompts[-1] + 1 if prompts else 0
            prompt_ids += [group.prompt_token_ids] * len(usable)
            completion_ids += [group.completion_token_ids[i] for i in usable]
            labels.append(quantile_bins(rewards[None, usable], bins)[0].float())
            prompts += [number] * len(usable)
        return cls(
            TokenSequences(prompt_ids, completion_ids),
            torch.cat(labels) if labels else torch.zeros(0, bins),
            prompts,
        )

    def behind(self, first_ids: Sequence[int]) -> "Examples":
        """The same, with the tokens before each text that the network reads first."""
        prompts = [begun_with(first_ids, ids) for ids in self.sequences.prompt_ids]
        return replace(self, sequences=TokenSequences(prompts, self.sequences.completion_ids))

    def first_prompts(self, count: int) -> "Examples":
        """Those of so many prompts."""
        rows = [row for row, prompt in enumerate(self.prompts) if prompt < count]
        return Examples(self.sequences.select(rows), self.labels[rows], [self.prompts[row] for row in rows])


def begun_with(first_ids: Sequence[int], prompt_ids: Sequence[int]) -> list[int]:
    """A prompt behind the tokens that every text begins with, which are not written twice."""
    begins = list(prompt_ids[: len(first_ids)]) == list(first_ids)
    return list(prompt_ids) if begins else [*first_ids, *prompt_ids]


def split_groups(groups: Sequence[Group], share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Groups to fit, and those of this share of the prompts (8 at least), held out; equal ones stay together.

    Which they are does not depend on the groups' order.
    """
    prompts = sorted({_key(group, seed) for group in groups})
    out = set(prompts[: max(FEWEST_HELD_OUT, round(share * len(prompts)))])
    fitted = [group for group in groups if _key(group, seed) not in out]
    return fitted, [group for group in groups if _key(group, seed) in out]


def _key(group: Group, seed: int) -> bytes:
    text = json.dumps([seed, group.prompt_token_ids])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def check_groups(groups: Sequence[Group], where: str) -> None:
    """Refuse groups that no value can be fitted on; `where` says whose they are.

    Raises:
        DataError: without rewards or token ids, too few prompts, or rewards that all tie.
    """
    if any(group.rewards is None for group in groups):
        raise DataError(f"{where} has groups without rewards; score them with `nonpareil sample` first")
    if not all(group.prompt_token_ids and all(group.completion_token_ids) for group in groups):
        raise DataError(
            f"{where} has prompts or completions without token ids; draw them with engine=transformers"
        )
    rewards = [_rewards_of(group) for group in groups]
    if not any((values > values.nan_to_num(nan=torch.inf).min()).any() for values in rewards):
        raise DataError(
            f"{where}: the rewards of a prompt's completions are equal at every prompt (or failed), so that no "
            "prefix is worth more than another; take a reward that varies, or more completions a prompt"
        )
    known = sum(int((~values.isnan()).sum()) > 1 for values in rewards)
    if known < FEWEST_PROMPTS:
        failed = f" with two rewards that did not fail, of {len(groups)}" if known < len(groups) else ""
        raise DataError(
            f"{where} has {known} prompts{failed}; a value needs {FEWEST_PROMPTS} at the very least, and a useful "
            "one hundreds, so draw more groups"
        )


def _rewards_of(group: Group) -> Float[Tensor, " m"]:
    """Float64; NaN where the reward failed."""
    return torch.tensor([torch.nan if r is None else r for r in group.rewards or []], dtype=torch.float64)
