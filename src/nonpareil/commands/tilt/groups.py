"""Stored groups as `nonpareil tilt` reads them: of this very policy, with rewards that tell completions apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.errors import ConfigError, DataError
from nonpareil.maths.counts import count_among
from nonpareil.models.logprobs import TokenSequences
from nonpareil.records import Group, SamplingParams
from nonpareil.rollouts.manifest import read_manifest
from nonpareil.rollouts.reading import read_groups
from nonpareil.training.stored_folder import check_drawn_from, check_endings, is_served

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy

FOLDS = 8
"""Parts of the prompts: what a tilt does to one is estimated with the tilt of the others."""

FEWEST_EFFECTIVE = 100
"""Completions. Below so many effective ones an estimate says nothing: the weights of a few decide it."""


@dataclass(frozen=True)
class TiltGroups:
    """The groups, and of their n completions with a reward what is counted, one behind another."""

    groups: list[Group]
    temperature: float
    rewards: Float[Tensor, "b m"]
    """NaN where one failed, or a group is smaller than the largest."""
    prompt: Int[Tensor, " n"]
    place: Int[Tensor, " n"]
    """Which group each is of, and where it stands in it."""
    quantile: Float[Tensor, " n"]
    """The share of the other rewards of its group that it beats, a tie one half."""
    fold: Int[Tensor, " n"]
    """Groups of one prompt are in one fold."""
    sequences: TokenSequences

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def mean_length(self) -> float:
        """Tokens of a completion, end token included."""
        return sum(map(len, self.sequences.completion_ids)) / len(self)


def tilt_groups(path: str, policy: "LocalPolicy") -> TiltGroups:
    """The groups of a `nonpareil sample` folder, all of which was drawn from this policy.

    Raises:
        DataError: no such groups, too few, or some without rewards or token ids; or rewards that all tie.
        ConfigError: groups of another policy, or drawn from a part of the vocabulary.
    """
    source = Path(path)
    manifest = read_manifest(source) if source.is_dir() else None
    if manifest is None:
        raise DataError(
            f"groups={path!r} has no manifest.json, so the model it was drawn from is unknown; give a folder "
            "written by `nonpareil sample`"
        )
    sampling = _sampling(path, manifest, policy)
    groups = read_groups(source)
    for group in groups:
        if group.rewards is None:
            raise DataError(f"groups={path!r} has no rewards yet; run `nonpareil sample` again to score them")
        if not group.prompt_token_ids or not all(group.completion_token_ids):
            raise DataError(
                f"groups={path!r}: prompt {group.prompt_id!r} has completions without token ids, and a tilt is of "
                "tokens; draw with engine=transformers or vllm"
            )
    check_endings(path, manifest["draw"]["model"], policy, groups)
    return _counted(path, groups, sampling.temperature)


def _sampling(path: str, manifest: Mapping[str, Any], policy: "LocalPolicy") -> SamplingParams:
    """How they were drawn, of the policy's whole vocabulary."""
    drawn = manifest["draw"]
    if is_served(manifest):
        raise DataError(
            f"groups={path!r} was drawn from a server, so nobody can say that its model is model_name_or_path="
            f"{policy.name_or_path!r}; draw groups with engine=transformers or vllm"
        )
    check_drawn_from(path, manifest, policy)
    sampling = SamplingParams(**drawn["sampling"])
    if not sampling.keeps_whole_vocabulary:
        raise ConfigError(
            f"groups={path!r} was drawn from a part of the vocabulary (top_p={sampling.top_p}, top_k="
            f"{sampling.top_k}, min_p={sampling.min_p}), and a tilt's KL is from the whole policy; draw without"
        )
    return sampling


def _counted(path: str, groups: list[Group], temperature: float) -> TiltGroups:
    rewards = torch.full((len(groups), max(map(len, groups))), torch.nan, dtype=torch.float64)
    for row, group in enumerate(groups):
        found = [torch.nan if reward is None else reward for reward in group.rewards or ()]
        rewards[row, : len(found)] = torch.tensor(found, dtype=torch.float64)
    rewards[(~rewards.isnan()).sum(1) < 2] = torch.nan  # one reward alone beats and loses to nothing
    counts = count_among(rewards, rewards)
    quantile = (counts.below + counts.at_or_below - 1) / 2 / (counts.valid - 1)
    prompt, place = (~rewards.isnan()).nonzero().unbind(1)
    if not len(prompt) or bool((quantile[prompt, place] == 0.5).all()):
        raise DataError(
            f"groups={path!r}: no prompt has two rewards that differ, so nothing tells one token from another; "
            "give groups whose rewards do"
        )
    prompts: dict[tuple[int, ...], int] = {}
    ids = [tuple(groups[row].prompt_token_ids) for row in prompt.tolist()]
    of_completion = [prompts.setdefault(one, len(prompts)) for one in ids]
    if len(prompts) < FOLDS or len(prompt) < FEWEST_EFFECTIVE:
        raise DataError(
            f"groups={path!r} has {len(prompt)} completions with a reward, of {len(prompts)} different prompts; a "
            f"tilt takes {FEWEST_EFFECTIVE} of {FOLDS} or more, since what it does is estimated on prompts that it "
            "was not counted on. Draw more groups"
        )
    pairs = list(zip(prompt.tolist(), place.tolist(), strict=True))
    sequences = TokenSequences(
        [groups[row].prompt_token_ids for row, _ in pairs],
        [groups[row].completion_token_ids[at] for row, at in pairs],
    )
    fold = torch.tensor(of_completion) % FOLDS
    return TiltGroups(groups, temperature, rewards, prompt, place, quantile[prompt, place], fold, sequences)
