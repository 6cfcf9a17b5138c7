"""Candidate next tokens at every position of completions: the drawn one, the likeliest, and a few from the tail."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.errors import ConfigError
from nonpareil.maths.keyed_noise import gumbel_noise, keys_after
from nonpareil.maths.vocabulary_sums import next_token_candidates
from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import (
    CHUNK_ELEMENTS,
    TokenSequences,
    output_head_is_plain,
    token_budget_batches,
)
from nonpareil.models.modes import evaluation_mode
from nonpareil.models.sharding import output_head, within

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
    """Of a sum over the candidates that is, on average, the vocabulary's expectation (`maths.vocabulary_sums`)."""


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
    token_ids = torch.zeros(shape, dtype=torch.long, device=device_of(model))
    found = Candidates(token_ids, *torch.zeros(2, *shape, device=token_ids.device))
    with evaluation_mode(model):
        for batch in token_budget_batches(sequences.lengths(), max_tokens_per_batch):
            if not any(sequences.completion_ids[row] for row in batch):
                continue
            some = (sequences.select(batch), keys[batch] ^ STREAM, likeliest, from_tail, temperature)
            rows, positions, *chosen = within(model, _choose, *some)
            for whole, part in zip((found.token_ids, found.logprobs, found.weights), chosen, strict=True):
                whole[np.array(batch)[rows], positions] = part
    return found


def _choose(
    model: PreTrainedModel,
    sequences: TokenSequences,
    keys: np.ndarray,
    likeliest: int,
    from_tail: int,
    temperature: float,
) -> tuple[Any, ...]:
    """Rows and positions of the completions' tokens, then of each the candidates, their log-probs and weights."""
    places = [(row, i) for row, ids in enumerate(sequences.completion_ids) for i in range(len(ids))]
    rows, positions = np.array(places).T
    before = np.array([len(ids) for ids in sequences.prompt_ids])[rows] + positions - 1
    states, logits_of = _states_and_head(model, sequences)
    states = states[rows, before]
    drawn = torch.tensor([sequences.completion_ids[row][i] for row, i in places], device=states.device)
    size, parts = max(1, CHUNK_ELEMENTS // model.config.get_text_config().vocab_size), []
    for chunk in (slice(start, start + size) for start in range(0, len(places), size)):
        logits = logits_of(states[chunk]).float() / temperature
        own = keys_after(keys[rows[chunk]], positions[chunk])
        noise = gumbel_noise(own, 0, logits.shape[-1]).to(logits.device)
        parts.append(next_token_candidates(logits, drawn[chunk], noise, likeliest, from_tail))
    return rows, positions, *(torch.cat(column) for column in zip(*parts, strict=True))


def _states_and_head(
    model: PreTrainedModel, sequences: TokenSequences
) -> tuple[Float[Tensor, "b s d"], Callable[[Tensor], Tensor]]:
    """The states that predict, and what makes logits of them; where only the model itself can, its logits."""
    texts = [p + c for p, c in zip(sequences.prompt_ids, sequences.completion_ids, strict=True)]
    # Right padding needs no attention mask: under causal attention no real token sees what comes behind it.
    ids = torch.tensor([ids + [0] * (max(sequences.lengths()) - len(ids)) for ids in texts])
    ids = ids.to(device_of(model))
    if output_head_is_plain(model):
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state, output_head(model)
    return model(input_ids=ids, use_cache=False).logits, nn.Identity()
