"""Draw tokens so that a completion depends on its own key alone, never on the batch it was drawn in."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonpareil.maths.keyed_noise import gumbel_noise
from nonpareil.records import SamplingParams

BLOCK = 64
"""Vocabulary entries that are first drawn together; about the square root of common vocabulary sizes."""
ROWS_AT_ONCE = 32
"""Rows whose logits a CPU's cache holds."""


def sample_keys(prompt_id: str, samples: Sequence[int], seed: int) -> np.ndarray:
    """One 64-bit key per sample: the hash of seed, prompt id and the sample's index within its group."""
    digests = (hashlib.blake2b(f"{seed}/{prompt_id}/{i}".encode(), digest_size=8) for i in samples)
    return np.array([int.from_bytes(d.digest(), "little") for d in digests], dtype=np.uint64)


def sampling_logits(logits: Float[Tensor, "r v"], sampling: SamplingParams) -> Float[Tensor, "r v"]:
    """The float32 logits of the sampling policy: temperature applied, tokens outside the kept set at -inf."""
    logits = logits.float()
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if sampling.keeps_whole_vocabulary:
        return logits
    if 0 < sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    if sampling.min_p > 0.0:
        floor = logits.max(-1, keepdim=True).values + float(np.log(sampling.min_p))
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def sample_tokens(
    logits: Float[Tensor, "r v"], sampling: SamplingParams, keys: np.ndarray, step: int
) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """One token per row, and its log-prob in nats under the sampling policy; see `draw_tokens`.

    On a CPU some rows at a time, whose passes over the vocabulary then stay in its cache.
    """
    at_once = ROWS_AT_ONCE if logits.device.type == "cpu" else max(1, len(logits))
    parts = [
        draw_tokens(sampling_logits(part, sampling), keys[i * at_once : (i + 1) * at_once], step)
        for i, part in enumerate(logits.split(at_once))
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def draw_tokens(
    logits: Float[Tensor, "r v"], keys: np.ndarray, step: int
) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """One token per row, and its log-prob in nats; exact draws from softmax(logits).

    The Gumbel trick, first over blocks of the vocabulary by their mass, then over the tokens of the block
    drawn: a few hundred random numbers per token in place of one for each entry. Where another batch shape
    moves the probabilities by a rounding error, the draw changes with about that probability; inverting the
    distribution function would multiply it by the size of the vocabulary.
    """
    rows, vocab = logits.shape
    num_blocks = -(-vocab // BLOCK)
    # One exponential over the vocabulary: neither draw asks what the masses add up to.
    masses = (logits - logits.amax(-1, keepdim=True)).exp_()
    if vocab % BLOCK:
        masses = torch.nn.functional.pad(masses, (0, num_blocks * BLOCK - vocab))
    masses = masses.view(rows, num_blocks, BLOCK)
    of_block = masses.sum(-1)
    noise = gumbel_noise(keys, step, num_blocks + BLOCK).to(logits.device)
    block = (of_block.log() + noise[:, :num_blocks]).argmax(-1)
    within = masses[torch.arange(rows, device=logits.device), block].log_()
    place = (within + noise[:, num_blocks:]).argmax(-1)
    logprobs = within.gather(-1, place[:, None])[:, 0] - of_block.sum(-1).log()
    return block * BLOCK + place, logprobs
