"""Whether a model takes rows that several completions of a prompt share: it is asked, on rows as wide as come.

Some models count positions or biases by themselves, look back a window of columns, keep a state along the row, or
hold masks of a fixed size. Short rows would not show all of that, so a model is asked anew when wider ones come.
"""

import inspect
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from nonpareil.models.devices import device_of
from nonpareil.models.logprobs import TokenSequences, completion_token_logprobs
from nonpareil.models.modes import evaluation_mode
from nonpareil.models.packing import WIDEST, completions_per_row
from nonpareil.models.sharding import is_sharded

IMPLEMENTATIONS = ("sdpa", "eager")
"""Kinds of attention that take a mask of who sees whom."""
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Nats per token, averaged over a completion, by which rounding alone may differ."""

_TAKEN: "WeakKeyDictionary[nn.Module, tuple[int, int]]" = WeakKeyDictionary()
"""The widest shared row, and the longest prompt with one completion, that a model was found to take."""
NEVER = (-1, -1)


def per_row(model: PreTrainedModel, sequences: TokenSequences, widest: int = WIDEST) -> int:
    """How many of these sequences of one prompt share a row in passes through the model; 1 for a row each.

    The same numbers come out, but for rounding. Adapters are those that are active. `widest`: most tokens of a row
    that is shared.
    """
    groups = sequences.by_prompt()
    count = completions_per_row(
        [len(sequences.prompt_ids[group[0]]) for group in groups],
        [[len(sequences.completion_ids[i]) for i in group] for group in groups],
        device_of(model).type,
        widest,
    )
    return count if count > 1 and takes_rows(model, sequences, sequences.in_rows(count)) else 1


def takes_rows(model: PreTrainedModel, sequences: TokenSequences, rows: list[list[int]]) -> bool:
    """Whether shared rows as wide as these give the log-probs of separate ones; what ends in an error does not."""
    if model not in _TAKEN:
        _TAKEN[model] = (0, 0) if _may_take(model) else NEVER
    known, lengths = _TAKEN[model], sequences.lengths()
    if known == NEVER:
        return False
    widest = max(rows, key=sequences.width)
    longest = max(rows, key=lambda row: max(lengths[i] for i in row))
    width, length = sequences.width(widest), max(lengths[i] for i in longest)
    if _window(model) < width:
        return False
    if width <= known[0] and length <= known[1]:
        return True
    shared = [row for row in (widest, longest) if len(row) > 1]
    answers = [_alike(model, sequences.select(row)) for row in shared]
    if None in answers:
        return False
    alike = all(answers)
    _TAKEN[model] = (max(width, known[0]), max(length, known[1])) if alike else NEVER
    return alike


def _may_take(model: PreTrainedModel) -> bool:
    """What needs no pass to be known: positions and masks must be given, not counted, and every layer attend."""
    config = model.config
    taken = inspect.signature(model.base_model.forward).parameters
    return (
        config._attn_implementation in IMPLEMENTATIONS
        and {"position_ids", "attention_mask"} <= set(taken)
        and not getattr(config, "alibi", False)
        and not is_sharded(model)
        and all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers)
    )


def _window(model: PreTrainedModel) -> float:
    """Tokens that every layer looks back; wider rows would need a mask of each layer's own."""
    layers = DynamicCache(config=model.config).layers
    return min(
        (getattr(layer, "sliding_window", 0) for layer in layers if type(layer) is not DynamicLayer),
        default=float("inf"),
    )


@torch.no_grad()
def _alike(model: PreTrainedModel, row: TokenSequences) -> bool | None:
    """Whether a shared row's first and last completion have the log-probs that they have apart.

    None where those are no numbers, which says nothing of the model.
    """
    ends = [0, len(row) - 1]
    try:
        # Autocast's rounding would hide what differs, and an adapter's dropout differ in each pass.
        with torch.autocast(device_of(model).type, enabled=False), evaluation_mode(model):
            together = completion_token_logprobs(model, row, sizes=[len(row)])[ends]
            apart = completion_token_logprobs(model, row.select(ends))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001 - whatever a model of another kind makes of such a row
        return False
    if not apart.isfinite().all():
        return None
    lengths = torch.tensor([len(row.completion_ids[i]) for i in ends], device=apart.device)
    gaps = (together[:, : apart.shape[1]] - apart).abs().sum(-1) / lengths
    return bool((gaps <= TOLERANCE.get(model.dtype, 0.0)).all())
