"""What policy and reference say of candidate next tokens, in chunks that never hold tokens x vocabulary at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nonpareil.maths.tilted_targets import candidate_log_ratios
from nonpareil.models.adapter_rows import row_adapters
from nonpareil.models.adapters import REFERENCE
from nonpareil.models.logprobs import TokenSequences, chunks, output_head_is_plain, predicting_states
from nonpareil.models.sharding import is_sharded, output_head, whole, within

Head = Callable[[Tensor], Tensor]


def next_token_log_ratios(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    sequences: TokenSequences,
    token_ids: Int[Tensor, "q k"],
    temperature: float = 1.0,
    sizes: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "q k"], Float[Tensor, " q"]]:
    """log pi - log pi_ref of the candidates, and KL(pi_ref || pi) of the next token, nats, temperature applied.

    One pass of each model over the completions; gradients flow to the policy where grad mode is on, and to the
    reference never. Logits are worked out a chunk at a time (`models.logprobs`), and anew in the backward pass.
    Where both models have the same weights, and compute alike, every number is exactly 0.

    Args:
        policy: the model that is trained.
        reference: of the same kind; None for the policy with its adapters off.
        sequences: prompts with their completions.
        token_ids: the candidates of each completion token, completion by completion; q of them in all.
        temperature: that the completions were drawn at.
        sizes: how many sequences share a row, as `models.logprobs.completion_token_logprobs` takes them.
    """
    rows = len(sequences) if sizes is None else len(sizes)
    with _reference(policy, reference, rows) as model:
        # In the policy's grad mode, by which attention is chosen.
        before, head = within(model, _states, sequences, sizes).detach(), _lasting_head(model)
    return within(policy, _log_ratios, before, head, sequences, token_ids, temperature, sizes)


def _states(
    model: PreTrainedModel, sequences: TokenSequences, sizes: Sequence[int] | None
) -> Float[Tensor, "q d"]:
    return predicting_states(model, sequences, sizes)[0]


def _log_ratios(
    policy: PreTrainedModel,
    before: Float[Tensor, "q d"],
    reference_head: Head,
    sequences: TokenSequences,
    token_ids: Int[Tensor, "q k"],
    temperature: float,
    sizes: Sequence[int] | None,
) -> tuple[Float[Tensor, "q k"], Float[Tensor, " q"]]:
    states, _, _, policy_head = predicting_states(policy, sequences, sizes)
    log_ratios, kls = [], []
    for chunk in chunks(states, 2 * policy.config.get_text_config().vocab_size):
        numbers = (states[chunk], before[chunk], token_ids[chunk], temperature)
        if torch.is_grad_enabled():
            found = checkpoint(_of_chunk, policy_head, reference_head, *numbers, use_reentrant=False)
        else:
            found = _of_chunk(policy_head, reference_head, *numbers)
        log_ratios.append(found[0])
        kls.append(found[1])
    return torch.cat(log_ratios), torch.cat(kls)


def _of_chunk(
    policy_head: Head,
    reference_head: Head,
    states: Float[Tensor, "q d"],
    before: Float[Tensor, "q d"],
    token_ids: Int[Tensor, "q k"],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        theirs = reference_head(before).float() / temperature
    return candidate_log_ratios(policy_head(states).float() / temperature, theirs, token_ids)


@contextmanager
def _reference(
    policy: PreTrainedModel, reference: PreTrainedModel | None, rows: int
) -> Iterator[PreTrainedModel]:
    """The reference, ready for a pass of so many rows."""
    if reference is not None:
        yield reference
        return
    output_head_is_plain(policy)  # asks with one row of its own, and so before rows have adapters
    with row_adapters(policy, [REFERENCE] * rows):
        yield policy


def _lasting_head(model: PreTrainedModel) -> Head:
    """The reference's last layer, for use in the policy's passes; one in shards is gathered, in every process."""
    if not output_head_is_plain(model):
        return nn.Identity()
    head: Any = model.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # adapters have copies of it, and the policy's is the active one
        return head.original_module
    if not is_sharded(model):
        return output_head(model)
    weights = {name: whole(weight.detach()) for name, weight in head.named_parameters()}

    def logits_of(states: Tensor) -> Tensor:
        return functional_call(
            head, {name: weight.to(states.dtype) for name, weight in weights.items()}, states
        )

    return logits_of
