"""What a model makes of candidate next tokens at every position of completions: one pass for all of them.

A candidate follows the tokens before its position, and nothing follows it. So the keys and values of a sequence are
computed once, and its candidates are further queries of the same row: a mask lets each see what stands before its
position, and itself. In place of a whole sequence for every candidate, this costs one token for each.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from nonpareil.errors import ModelError
from nonpareil.models.cache_name import cache_name
from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import TokenSequences, token_budget_batches
from nonpareil.models.modes import generation_mode
from nonpareil.models.sharding import is_sharded

QUERIES = 128
"""Most candidates of a row in one pass: each looks at the keys of all, and more would cost more than they save."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.06}
"""Distance of two states, as a share of their length, up to which it is rounding."""

Part = tuple[Int[Tensor, " q"], Float[Tensor, "q d"]]
"""Where candidates stand in `[b, t, k]`, flattened, and the state at each."""


@torch.no_grad()
def score_candidates(
    model: PreTrainedModel,
    sequences: TokenSequences,
    token_ids: Int[Tensor, "b t k"],
    read: Callable[[Float[Tensor, "q d"]], Tensor],
    *,
    max_tokens_per_batch: int = 4096,
) -> Tensor:
    """What `read` makes of the last hidden state at each candidate, `[b, t, k, ...]`; 0 behind a completion's end.

    A candidate at position t follows the prompt and the first t tokens of the completion. `token_ids` behind a
    completion's end are not looked at.

    Args:
        model: a causal language model or a causal classifier, whole in this process; of a PEFT model its
            `adapters.plain_model`. In evaluation mode meanwhile.
        sequences: prompts, none of them empty, with their completions; t is the longest completion.
        token_ids: as in `candidates.Candidates`, or any others.
        read: of the last layer's states (behind its norm, in the model's dtype) a value or a row each: a
            classifier's head gives the score of the text that ends there; the identity keeps whole states.
        max_tokens_per_batch: most tokens and candidates in one pass, padding included; it changes no value.

    Raises:
        ValueError: candidates of other completions, by their number or length, or no completion with a token.
        ModelError: weights in shards, or a model without an inner one that gives states.
    """
    longest = max(map(len, sequences.completion_ids), default=0)
    if len(token_ids) != len(sequences) or not 1 <= longest <= token_ids.shape[1]:
        raise ValueError(
            f"candidates {list(token_ids.shape)} for {len(sequences)} completions, the longest of {longest} tokens"
        )
    if is_sharded(model):
        raise ModelError(
            "candidates are scored by a model that is whole in this process; its weights are in shards"
        )
    with generation_mode(model):
        passes = _shared_passes if shares_sequences(model, sequences, token_ids) else _separate_passes
        parts = passes(model, sequences, token_ids.to(device_of(model)), max_tokens_per_batch)
        return _placed(parts, read, token_ids.shape)


def shares_sequences(
    model: PreTrainedModel, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"]
) -> bool:
    """Whether the candidates of a sequence can share its pass; if not, each has a pass over its whole text.

    The model itself is asked, once for sequences of a length: what it answers at the end of the longest one must be
    what it answers in separate passes. Sliding windows that a sequence fills say no, as do states that are not keys
    and values.
    """
    lengths, completions = sequences.lengths(), sequences.completion_ids
    longest = max((row for row, ids in enumerate(completions) if ids), key=lengths.__getitem__)
    length = lengths[longest]
    if not _takes_masks_and_positions(model) or _shared_cache(model.config, length) is None:
        return False
    if length > _ASKED.get(model, 0):
        try:
            asked = token_ids[longest : longest + 1].to(device_of(model))
            if not _agrees(model, sequences.select([longest]), asked):
                return False
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # noqa: BLE001 - whatever a model says to a mask or a cache that it does not know
            return False
        _ASKED[model] = length
    return True


_ASKED: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()
"""The longest sequence for which a model said yes."""


def _agrees(model: PreTrainedModel, sequence: TokenSequences, token_ids: Int[Tensor, "1 t k"]) -> bool:
    """At the end of one sequence, with as many candidates in the pass as there ever are: the first and the last."""
    (prompt,), (completion,) = sequence.prompt_ids, sequence.completion_ids
    start = max(0, len(completion) - 2)
    ids = token_ids[:, start : len(completion)].repeat(1, 1, QUERIES)
    ids = ids[..., : -(-QUERIES // ids.shape[1])]
    end = TokenSequences([prompt + completion[:start]], [completion[start:]])
    shared = _placed(_shared_passes(model, end, ids, QUERIES), nn.Identity(), ids.shape)
    ids = ids[..., [0, -1]]
    alone = _placed(_separate_passes(model, end, ids, 1), nn.Identity(), ids.shape)
    distance = (shared[..., [0, -1], :].float() - alone.float()).norm(dim=-1)
    return bool((distance <= TOLERANCE.get(model.dtype, 0.0) * alone.float().norm(dim=-1)).all())


def _placed(parts: Iterator[Part], read: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
    where, values = zip(*((where, read(states)) for where, states in parts), strict=True)
    rows = torch.cat(values)
    placed = rows.new_zeros(shape.numel(), *rows.shape[1:]).index_copy_(
        0, torch.cat(where).to(rows.device), rows
    )
    return placed.unflatten(0, shape)


def _shared_passes(
    model: PreTrainedModel, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"], max_tokens: int
) -> Iterator[Part]:
    """Sequences once, of about one length together, then their candidates, some of every row at a time."""
    for batch in token_budget_batches(sequences.lengths(), max_tokens):
        # Longest completion first: rows whose candidates are all done leave from the end.
        batch.sort(key=lambda row: -len(sequences.completion_ids[row]))
        if not sequences.completion_ids[batch[0]]:
            continue
        yield from _batch_passes(model, sequences.select(batch), token_ids, batch, max_tokens)


def _batch_passes(
    model: PreTrainedModel, sequences: TokenSequences, token_ids: Tensor, batch: list[int], max_tokens: int
) -> Iterator[Part]:
    """`batch`: rows of `token_ids` that the sequences are; the longest completion comes first."""
    device, (_, longest, k) = token_ids.device, token_ids.shape
    cache = _shared_cache(model.config, max(sequences.lengths()))
    assert cache is not None
    texts = [p + c[:-1] for p, c in zip(sequences.prompt_ids, sequences.completion_ids, strict=True)]
    width = max(map(len, texts))
    # Right padding needs no attention mask: under causal attention no real token sees what comes behind it.
    last_states(model, torch.tensor([ids + [0] * (width - len(ids)) for ids in texts]), cache)
    counts = torch.tensor([len(ids) * k for ids in sequences.completion_ids], device=device)
    prompts = torch.tensor([len(ids) for ids in sequences.prompt_ids], device=device)
    first = torch.tensor(batch, device=device) * longest * k
    ids, keys, start = token_ids[batch].flatten(1), torch.arange(width, device=device), 0
    while rows := int((counts > start).sum()):
        queries = torch.arange(start, start + min(QUERIES, max(1, max_tokens // rows)), device=device)
        start += len(queries)
        mine = queries < counts[:rows, None]
        queries = queries.minimum(counts[:rows, None] - 1)  # no position behind the completion's end
        before = prompts[:rows, None] + queries // k
        itself = torch.eye(queries.shape[1], dtype=torch.bool, device=device).expand(rows, -1, -1)
        seen = torch.cat([keys < before[..., None], itself], -1)
        states = last_states(model, ids[:rows].gather(1, queries), cache, seen, before)
        yield (first[:rows, None] + queries)[mine], states[mine]


def _separate_passes(
    model: PreTrainedModel, sequences: TokenSequences, token_ids: Int[Tensor, "b t k"], max_tokens: int
) -> Iterator[Part]:
    """Prompt, completion and candidate anew for every candidate; without cache, mask or padding."""
    _, longest, k = token_ids.shape
    for row, completion in enumerate(sequences.completion_ids):
        for position in range(len(completion)):
            before = torch.tensor(sequences.prompt_ids[row] + completion[:position]).to(token_ids)
            texts = torch.cat([before.expand(k, -1), token_ids[row, position, :, None]], -1)
            for part in torch.arange(k).split(max(1, max_tokens // texts.shape[1])):
                where = (row * longest + position) * k + part
                yield where.to(token_ids.device), last_states(model, texts[part])[:, -1]


def last_states(
    model: PreTrainedModel,
    ids: Int[Tensor, "b s"],
    cache: DynamicCache | None = None,
    seen: Bool[Tensor, "b s c"] | None = None,
    positions: Int[Tensor, "b s"] | None = None,
) -> Float[Tensor, "b s d"]:
    """Last hidden states; with a mask, of tokens at positions of their own, whose keys come last."""
    body: Any = _body(model)
    arguments: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        arguments[str(cache_name(type(body)))] = cache  # it takes one: `_takes_masks_and_positions`
    if seen is not None:
        hidden = torch.finfo(model.dtype).min
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill_(~seen, hidden)
        arguments |= {"attention_mask": mask.unsqueeze(1), "position_ids": positions}
    output = body(input_ids=ids.to(device_of(model)), **arguments)
    if getattr(output, "last_hidden_state", None) is None:
        raise ModelError(
            f"{type(body).__name__} gives no last hidden state; use a model with a decoder inside"
        )
    return output.last_hidden_state


def _body(model: PreTrainedModel) -> nn.Module:
    """The inner model that gives states, or the model itself where there is none.

    Llama 4's, as some others', is `model` whatever name its class gives for it.
    """
    inner = getattr(model, "model", None)
    if model.base_model is model and isinstance(inner, PreTrainedModel):
        return inner
    return model.base_model


class _SequenceLayer(DynamicLayer):
    """Keys and values of sequences; those of candidates are put behind them for one pass, and not kept."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The sequences' own at first; then with those of candidates of the first rows."""
        if not self.is_initialized:
            return super().update(key_states, value_states)
        rows = len(key_states)
        keys, values = self.keys[:rows], self.values[:rows]
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


def _shared_cache(config: PretrainedConfig, tokens: int) -> DynamicCache | None:
    """An empty one, or none where layers keep something else, or less than `tokens` of a text."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        holds_all = type(layer) is DynamicSlidingWindowLayer and tokens <= (layer.sliding_window or 0)
        if not holds_all and type(layer) is not DynamicLayer:
            return None
    cache.layers = [_SequenceLayer() for _ in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = _SequenceLayer
    return cache


def _takes_masks_and_positions(model: PreTrainedModel) -> bool:
    body = type(_body(model))
    named = {"attention_mask", "position_ids"} <= set(inspect.signature(body.forward).parameters)
    return named and cache_name(body) is not None
