"""What each token's occurrences in stored groups were worth, summed by fold of the prompts."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.commands.tilt.groups import FOLDS, TiltGroups
from nonpareil.credits import CreditsByPrompt
from nonpareil.errors import DataError
from nonpareil.maths.vocabulary_tilt import mean_advantages

DRAWN_DAMPING = 10.0
"""Occurrences of no advantage beside a token's own, where a whole completion's quantile is each token's credit."""
CREDITED_DAMPING = 0.3
"""The same where a value says what each candidate is worth, which has far less noise."""


@dataclass(frozen=True)
class TokenSums:
    """Advantages and counts of each token in each fold; tokens that stay as they are have none."""

    advantages: Float[Tensor, "f v"]
    counts: Float[Tensor, "f v"]
    damping: float

    def tilt(self) -> Float[Tensor, " v"]:
        """b, nats, from all folds."""
        return mean_advantages(self.advantages.sum(0), self.counts.sum(0), self.damping)

    def tilts_without(self) -> Float[Tensor, "f v"]:
        """For each fold the b that all others give."""
        advantages, counts = (each.sum(0) - each for each in (self.advantages, self.counts))
        return mean_advantages(advantages, counts, self.damping)


def token_sums(
    data: TiltGroups, credits: CreditsByPrompt | None, vocabulary: int, kept: Iterable[int]
) -> TokenSums:
    """The sums over all completions: of a value's credits where there are some, else of the completions' quantiles.

    With credits every candidate counts with its weight and its own advantage. Without, each token of a completion
    has the completion's quantile less one half: on average that is the token's advantage, and how good the states
    are that it stands in.

    `kept`: tokens whose bias is 0.

    Raises:
        DataError: a token that the model has not, or a tilt that is 0 everywhere.
    """
    advantages = torch.zeros(FOLDS, vocabulary, dtype=torch.float64)
    counts = torch.zeros_like(advantages)
    for index, (row, place, fold) in enumerate(
        zip(data.prompt.tolist(), data.place.tolist(), data.fold.tolist(), strict=True)
    ):
        if credits is None:
            tokens = torch.tensor(data.sequences.completion_ids[index])
            weights = torch.ones(len(tokens), dtype=torch.float64)
            worth = (data.quantile[index] - 0.5) * weights
        else:
            of_prompt = credits.get(data.groups[row].prompt_id, ())
            one = of_prompt[place] if place < len(of_prompt) else None
            if one is None:
                continue
            tokens = torch.from_numpy(one.token_ids).flatten().long()
            weights = torch.from_numpy(one.weights).flatten().double()
            worth = weights * torch.from_numpy(one.advantages).flatten().double()
        if int(tokens.max()) >= vocabulary or int(tokens.min()) < 0:
            raise DataError(
                f"prompt {data.groups[row].prompt_id!r}: token ids {int(tokens.min())} to {int(tokens.max())}, "
                f"and the model's output layer has {vocabulary}; draw the groups anew"
            )
        advantages[fold].index_add_(0, tokens, worth)
        counts[fold].index_add_(0, tokens, weights)
    still = [token for token in kept if token < vocabulary]
    advantages[:, still] = 0
    sums = TokenSums(advantages, counts, DRAWN_DAMPING if credits is None else CREDITED_DAMPING)
    if not bool(sums.tilt().any()):
        raise DataError("the tilt is 0 for every token: no token is worth more than another in these groups")
    return sums
