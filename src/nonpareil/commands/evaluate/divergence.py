"""The KL of the policy from the reference, on stored completions of either."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nonpareil.options.evaluate import EvaluateOptions
from nonpareil.records import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.models.logprobs import TokenSequences


class Divergence(NamedTuple):
    """In nats, one value per completion: tensors of [prompts, completions per prompt]."""

    kl: "Tensor"
    """Of the policy from the reference along the policy's completions, exact at each token and summed."""
    log_ratio: "Tensor"
    """log policy - log reference, of the policy's completions."""
    reference_log_ratio: "Tensor"
    """The same, of the reference's completions."""


def divergence(
    options: EvaluateOptions,
    sides: "tuple[LocalPolicy, LocalPolicy]",
    products: "torch.dtype",
    ours: Sequence[Group],
    theirs: Sequence[Group],
) -> Divergence:
    """How far the policy of the first of `sides` is from the second's, on stored groups of both.

    Of the very weights that drew, multiplied in `products`.

    Raises:
        ModelError: a model that cannot be loaded, or whose log-probs do not hold.
    """
    import torch

    from nonpareil.models.logprobs import TokenSequences, row_batches
    from nonpareil.rollouts.progress import ProgressBar

    per_row, compare = _comparison(sides, products, options.sampling().temperature)

    def measure(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = TokenSequences(
            [group.prompt_token_ids for group in groups for _ in group.completion_token_ids],
            [ids for group in groups for ids in group.completion_token_ids],
        )
        kl, ratio = torch.empty(len(sequences)), torch.empty(len(sequences))
        lengths = sequences.lengths()
        budget = options.max_tokens_per_batch
        together = per_row(sequences, budget)
        for rows in row_batches(sequences, together, budget):
            members, sizes = [i for row in rows for i in row], [len(row) for row in rows]
            part = sequences.select(members)
            values = compare(part, sizes)
            kl[members], ratio[members] = values[0].cpu(), values[1].cpu()
            progress.update(len(members), sum(lengths[i] for i in members))
        return kl.view(len(groups), -1), ratio.view(len(groups), -1)

    with ProgressBar() as progress:
        total = sum(len(group) for side in (ours, theirs) for group in side)
        progress.start("compare", total, unit="completions")
        return Divergence(*measure(ours), measure(theirs)[1])


PerRow = Callable[["TokenSequences", int], int]
"""Of sequences and the most tokens of a pass, how many sequences share a row."""
Compare = Callable[["TokenSequences", Sequence[int]], "tuple[Tensor, Tensor]"]
"""Of sequences and how many share each row, KL and log-ratio."""


def _comparison(
    sides: "tuple[LocalPolicy, LocalPolicy]", products: "torch.dtype", temperature: float
) -> tuple[PerRow, Compare]:
    """What compares, with the models that it needs in memory."""
    from nonpareil.commands.policies.guided import GuidedPolicy
    from nonpareil.engines.guided_divergence import guided_divergence
    from nonpareil.engines.load_check import check_scoring
    from nonpareil.models.logprobs import completion_divergence
    from nonpareil.models.packing_check import per_row

    # Drawn from in this run, or in an earlier one of another version.
    if isinstance(sides[0], GuidedPolicy):
        guided, guide = sides[0].load(products), sides[0].guide(products)
        check_scoring(guided)
        return lambda sequences, budget: 1, lambda part, sizes: guided_divergence(
            guided, guide, part, temperature
        )
    models = tuple(side.load(products) for side in sides)
    for model in models:
        check_scoring(model)

    def together(sequences: "TokenSequences", budget: int) -> int:
        return min(per_row(model, sequences, budget) for model in models)

    def compare(part: "TokenSequences", sizes: Sequence[int]) -> "tuple[Tensor, Tensor]":
        policy, reference = models
        return completion_divergence(policy, reference, part, temperature, sizes)

    return together, compare
