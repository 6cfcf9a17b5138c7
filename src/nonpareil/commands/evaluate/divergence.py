"""The KL of the policy from the reference, on stored completions of either."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nonpareil.options.commands import EvaluateOptions
from nonpareil.records import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nonpareil.commands.policies.local import LocalPolicy


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

    from nonpareil.engines.load_check import check_scoring
    from nonpareil.models.logprobs import TokenSequences, completion_divergence, row_batches
    from nonpareil.models.packing_check import per_row
    from nonpareil.rollouts.progress import ProgressBar

    policy, reference = (side.load(products) for side in sides)
    temperature = options.sampling().temperature
    for model in (policy, reference):  # drawn from in this run, or in an earlier one of another version
        check_scoring(model)

    def measure(groups: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = TokenSequences(
            [group.prompt_token_ids for group in groups for _ in group.completion_token_ids],
            [ids for group in groups for ids in group.completion_token_ids],
        )
        kl, ratio = torch.empty(len(sequences)), torch.empty(len(sequences))
        lengths = sequences.lengths()
        budget = options.max_tokens_per_batch
        together = min(per_row(model, sequences, budget) for model in (policy, reference))
        for rows in row_batches(sequences, together, budget):
            members, sizes = [i for row in rows for i in row], [len(row) for row in rows]
            part = sequences.select(members)
            values = completion_divergence(policy, reference, part, temperature, sizes)
            kl[members], ratio[members] = values[0].cpu(), values[1].cpu()
            progress.update(len(members), sum(lengths[i] for i in members))
        return kl.view(len(groups), -1), ratio.view(len(groups), -1)

    with ProgressBar() as progress:
        total = sum(len(group) for side in (ours, theirs) for group in side)
        progress.start("compare", total, unit="completions")
        return Divergence(*measure(ours), measure(theirs)[1])
