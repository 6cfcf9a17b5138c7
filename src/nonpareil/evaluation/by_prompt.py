"""The metrics of each prompt, by which evaluations on the same prompts are paired."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nonpareil.evaluation.groups import MatchedGroups, rewards_of
from nonpareil.maths.win_rate import pairwise


@dataclass(frozen=True)
class ByPrompt:
    """One number per prompt, in the order of the prompt ids."""

    prompt_ids: tuple[str, ...]
    win_rate: tuple[float | None, ...]
    """Over the prompt's pairs; None where all rewards of a side failed."""
    kl: tuple[float, ...]
    """Mean over the prompt's policy completions, nats."""
    unseen_win_rate: tuple[float | None, ...] | None
    """Under the reward that was not trained on; None without one."""


def metrics_by_prompt(matched: MatchedGroups, kl: Tensor, unseen_reward: str | None) -> ByPrompt:
    """Of both sides' groups; `kl` [b, k] is that of each policy completion."""
    return ByPrompt(
        tuple(group.prompt_id for group in matched.policy),
        _known(win_rates(matched)),
        tuple(kl.mean(1).tolist()),
        None if unseen_reward is None else _known(win_rates(matched, unseen_reward)),
    )


def win_rates(matched: MatchedGroups, reward: str | None = None) -> Float[Tensor, " b"]:
    """Of each prompt's pairs, ties one half; NaN without one. The aggregate reward's unless one is named."""
    return pairwise(rewards_of(matched.policy, reward), rewards_of(matched.reference, reward)).win_rate


def _known(rates: Tensor) -> tuple[float | None, ...]:
    values: Sequence[float] = rates.tolist()
    return tuple(None if math.isnan(rate) else rate for rate in values)
