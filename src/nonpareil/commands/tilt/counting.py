"""What each token's occurrences in stored groups were worth, summed by fold of the prompts."""

from collections.abc import Iterable

import torch

from nonpareil.commands.tilt.groups import FOLDS, TiltGroups
from nonpareil.credits import CreditsByPrompt
from nonpareil.errors import DataError
from nonpareil.maths.token_sums import CREDITED_DAMPING, DRAWN_DAMPING, TokenSums


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
    sums = TokenSums.zeros(FOLDS, vocabulary, DRAWN_DAMPING if credits is None else CREDITED_DAMPING)
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
            weights = torch.from_numpy(one.weights).flatten()
            worth = torch.from_numpy(one.advantages).flatten()
        if int(tokens.max()) >= vocabulary or int(tokens.min()) < 0:
            raise DataError(
                f"prompt {data.groups[row].prompt_id!r}: token ids {int(tokens.min())} to {int(tokens.max())}, "
                f"and the model's output layer has {vocabulary}; draw the groups anew"
            )
        sums.add(fold, tokens, weights, worth)
    sums.keep(kept)
    if not bool(sums.tilt().any()):
        raise DataError("the tilt is 0 for every token: no token is worth more than another in these groups")
    return sums
