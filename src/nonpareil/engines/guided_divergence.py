"""How far a guided policy is from its reference, along stored completions: exact, as its law is known."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.engines.guidance import Guide, refuse_no_value
from nonpareil.maths.guidance import guided_kl, likeliest_tokens
from nonpareil.models.logprobs import TokenSequences, chunks, predicting_states
from nonpareil.models.modes import evaluation_mode


@torch.no_grad()
def guided_divergence(
    reference: PreTrainedModel, guide: Guide, sequences: TokenSequences, temperature: float = 1.0
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Exact per-token KL(guided || reference), and log pi - log pi_ref, summed along each completion, nats.

    The counterpart of `models.logprobs.completion_divergence`, for a policy that is the reference with a guide.

    Args:
        reference: that is guided, the whole vocabulary of which is drawn from.
        guide: as it draws.
        sequences: completions of either, none of them empty; one pass of the reference.
        temperature: that the completions were drawn at.

    Raises:
        NotFiniteError: the value of a prefix is NaN or infinite.
    """
    counts = [len(ids) for ids in sequences.completion_ids]
    with evaluation_mode(reference):
        states, drawn, owner, logits_of = predicting_states(reference, sequences, None)
    found = []
    for chunk in chunks(states, reference.config.get_text_config().vocab_size):
        logprobs = (logits_of(states[chunk]).float() / temperature).log_softmax(-1)
        found.append(likeliest_tokens(logprobs, guide.law.likeliest))
    token_ids, logprobs, rest = (torch.cat(column) for column in zip(*found, strict=True))
    column = torch.cat([torch.arange(count) for count in counts]).to(owner)
    candidates = token_ids.new_zeros(len(sequences), max(counts), token_ids.shape[1])
    candidates[owner, column] = token_ids
    values = guide.value.candidate_values(sequences, candidates).to(rest.device)[owner, column].float()
    before = guide.value.prefix_values(sequences).to(rest.device)[owner, column].float()
    there = logprobs > -torch.inf
    refuse_no_value(before, values[there])
    advantages = guide.law.advantages(values.masked_fill(~there, 0.0), before)
    ratios, others = guide.law.log_ratios(logprobs, rest, advantages)
    own = token_ids == drawn[:, None]
    ratio = torch.where(own.any(-1), torch.where(own, ratios, 0.0).sum(-1), others)
    nothing = torch.zeros(len(sequences), device=rest.device)
    kl = guided_kl(logprobs, rest, ratios, others)
    return nothing.index_add(0, owner, kl), nothing.index_add(0, owner, ratio)
