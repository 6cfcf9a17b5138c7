"""Candidate next tokens at every position of completions: the drawn one, the likeliest, and a few from the tail.

What is expected of the next token is a sum over the vocabulary. The likeliest tokens give most of it exactly; the
rest of the vocabulary, the tail, is estimated from tokens drawn from it one after another, each by its probability
among those that are left. Of `r` such draws with probabilities p_1 .. p_r, the i-th alone gives an estimate of the
tail's sum: what the draws before it add to the sum, and f(a_i) for all the mass that was left. The mean of these
estimates (Des Raj, 1956) is a weighted sum over the draws, so that for every f

    E_{a ~ pi} f(a) = E[sum_k w_k f(a_k)],   w = pi(a) of the drawn and the likeliest tokens,
                                             w_i = (mass left before i + (r - i) p_i) / r of the i-th from the tail.

The weights of a position add up to 1, whatever was drawn: a constant is exact.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.errors import ConfigError
from nonpareil.maths.keyed_noise import gumbel_noise
from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import (
    TokenSequences,
    predicting_states,
    token_budget_batches,
    vocabulary_chunks,
)
from nonpareil.models.modes import evaluation_mode
from nonpareil.models.sharding import within

STREAM = np.uint64(0x5851F42D4C957F2D)
"""Sets the tail's random numbers apart from those that a completion was drawn by, where both have one key."""


@dataclass(frozen=True)
class Candidates:
    """Next tokens to look at; at a position all differ. Behind a completion's end everything is 0."""

    token_ids: Int[Tensor, "b t k"]
    """The one that the completion has, then the likeliest others, then draws from the tail in their order."""
    logprobs: Float[Tensor, "b t k"]
    """Nats, of the whole vocabulary, temperature applied."""
    weights: Float[Tensor, "b t k"]
    """Of a sum that is expected to be the expectation over the whole vocabulary; see the module."""


@torch.no_grad()
def choose_candidates(
    model: PreTrainedModel,
    sequences: TokenSequences,
    keys: np.ndarray,
    *,
    likeliest: int,
    from_tail: int,
    temperature: float = 1.0,
    max_tokens_per_batch: int = 4096,
) -> Candidates:
    """The tokens of the completions, and others that could stand in their places: k = 1 + likeliest + from_tail.

    The same keys choose the same candidates in any batch, but for rounding. t is the longest completion.

    Args:
        model: the policy whose next tokens they are.
        sequences: prompts with their completions; at least one.
        keys: `[b]`, 64 bits each, as `engines.sampling.sample_keys` makes them.
        likeliest: candidates at each position that are the likeliest, beside the completion's own token.
        from_tail: drawn without replacement from the others; with 0 the weights add up to less than 1.
        temperature: that the completions were drawn at.
        max_tokens_per_batch: most tokens in one pass.

    Raises:
        ConfigError: a negative number of candidates, or more than the vocabulary has tokens.
    """
    vocabulary = model.config.get_text_config().vocab_size
    shape = (len(sequences), max(map(len, sequences.completion_ids)), 1 + likeliest + from_tail)
    if min(likeliest, from_tail) < 0 or shape[-1] > vocabulary:
        raise ConfigError(
            f"likeliest={likeliest} and from_tail={from_tail} must not be negative, and with the completion's own "
            f"token not more than the vocabulary's {vocabulary}"
        )
    device = device_of(model)
    found = Candidates(
        torch.zeros(shape, dtype=torch.long, device=device), *torch.zeros(2, *shape, device=device)
    )
    with evaluation_mode(model):
        for batch in token_budget_batches(sequences.lengths(), max_tokens_per_batch):
            if not any(sequences.completion_ids[row] for row in batch):
                continue
            some = (sequences.select(batch), keys[batch] ^ STREAM, likeliest, from_tail, temperature)
            rows, positions, *chosen = within(model, _choose, *some)
            for whole, part in zip((found.token_ids, found.logprobs, found.weights), chosen, strict=True):
                whole[torch.tensor(batch, device=device)[rows], positions] = part
    return found


def _choose(
    model: PreTrainedModel,
    sequences: TokenSequences,
    keys: np.ndarray,
    likeliest: int,
    from_tail: int,
    temperature: float,
) -> tuple[Tensor, ...]:
    """Rows and positions of the completions' tokens, then of each the candidates, their log-probs and weights."""
    states, drawn, rows, logits_of = predicting_states(model, sequences)
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences.completion_ids]).to(rows.device)
    parts = []
    for chunk in vocabulary_chunks(states, model.config.get_text_config().vocab_size):
        logits = logits_of(states[chunk]).float() / temperature
        noise = gumbel_noise(
            keys[rows[chunk].cpu().numpy()], positions[chunk].cpu().numpy(), logits.shape[-1]
        )
        parts.append(candidates_of(logits, drawn[chunk], noise.to(logits.device), likeliest, from_tail))
    return rows, positions, *(torch.cat(column) for column in zip(*parts, strict=True))


def candidates_of(
    logits: Float[Tensor, "q v"],
    drawn: Int[Tensor, " q"],
    noise: Float[Tensor, "q v"],
    likeliest: int,
    from_tail: int,
) -> tuple[Int[Tensor, "q k"], Float[Tensor, "q k"], Float[Tensor, "q k"]]:
    """Of each position the candidates, their log-probs in nats and their weights, as in `Candidates`.

    `noise`: standard Gumbel numbers. The largest of log-probs with noise are draws without replacement.
    """
    logprobs = logits.log_softmax(-1)
    kept = logprobs.scatter(-1, drawn[:, None], torch.inf).topk(1 + likeliest).indices
    mass = logprobs.scatter(-1, kept, -torch.inf).exp().sum(-1, keepdim=True)
    # A token without any probability is drawn when there is no other, but none twice.
    perturbed = (logprobs + noise).clamp(min=torch.finfo(logprobs.dtype).min)
    tail = perturbed.scatter(-1, kept, -torch.inf).topk(from_tail).indices
    token_ids = torch.cat([kept, tail], -1)
    chosen = logprobs.gather(-1, token_ids)
    certain, draws = chosen.exp().split([1 + likeliest, from_tail], -1)
    left = (mass - (draws.cumsum(-1) - draws)).clamp(min=0)
    after = torch.arange(from_tail - 1, -1, -1, device=draws.device)
    return token_ids, chosen, torch.cat([certain, (left + after * draws) / max(1, from_tail)], -1)
