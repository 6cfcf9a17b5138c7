"""Passes of a classifier over rows of token ids: how large they are, and how they are padded and pooled."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from nonpareil.errors import ModelError
from nonpareil.models.cache_name import cache_name
from nonpareil.rewards.models.prefix_cache import Prefixes

Result = TypeVar("Result")


@dataclass(frozen=True)
class PassSize:
    """What a pass costs on a device."""

    tokens: int
    """Of one pass, padding included, where the user does not say."""
    overhead: int
    """Tokens of a larger pass that take as long as one pass more."""


CPU = PassSize(tokens=2048, overhead=64)
"""More tokens would leave the CPU's caches between one layer and the next."""
ACCELERATOR = PassSize(tokens=16384, overhead=2048)
"""Fewer tokens would leave its units idle."""


def pass_size(device: torch.device) -> PassSize:
    """Of the device that a model lies on."""
    return CPU if device.type == "cpu" else ACCELERATOR


def none_without_memory(run: Callable[[], Result]) -> Result | None:
    """What `run` gives, or None where memory ran out (not raised, so that the frames are freed)."""
    try:
        return run()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        message = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError) or any(
            sign in message for sign in ("out of memory", "can't allocate memory", "not enough memory")
        ):
            return None
        raise


def check_ids(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Refuse ids that the model has no embeddings for.

    Raises:
        ModelError: naming the largest.
    """
    largest, vocabulary = max(map(max, rows)), model.get_input_embeddings().weight.shape[0]
    if largest >= vocabulary:
        raise ModelError(
            f"the reward model's tokenizer gave token {largest}, but its model has {vocabulary} embeddings"
        )


@torch.inference_mode()
def logits_of(
    model: Any,
    rows: Sequence[Sequence[int]],
    prefixes: Prefixes | None = None,
    owners: Sequence[int] = (),
) -> list[float]:
    """One logit a row: padded on the right, masked by length, pooled where the model was trained to.

    Decoder classifiers pool at the last token that is not `config.pad_token_id`, so we pad with that id.
    Where the model has none, an id that no row holds stands in for it during this forward.

    Args:
        model: in evaluation mode.
        rows: token ids, none empty.
        prefixes: what the rows follow; the pooled token of each must be in the row itself.
        owners: the prefix of each row.
    """
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight
    vocabulary = embeddings.shape[0]
    declared = config.pad_token_id
    pad = pad_of(model)
    if pad is None:
        pad = next(iter(set(range(vocabulary)).difference(*rows)), None)
        if pad is None and len(rows) > 1:  # every id is in use: a row alone needs no padding
            alone = [owners[i : i + 1] for i in range(len(rows))]
            return [
                x
                for row, owner in zip(rows, alone, strict=True)
                for x in logits_of(model, [row], prefixes, owner)
            ]
    before = prefixes.length if prefixes is not None else 0
    input_ids = torch.full((len(rows), max(map(len, rows))), pad or 0)
    attention_mask = torch.zeros(len(rows), before + input_ids.shape[1], dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : before + len(row)] = 1
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    options: dict[str, Any] = {}
    if prefixes is not None:
        cache = prefixes.cache(torch.tensor(owners, device=embeddings.device), model.config)
        options = {"use_cache": True, cache_name(type(model)) or "": cache}
    elif "use_cache" in inspect.signature(model.forward).parameters:
        options = {"use_cache": False}
    config.pad_token_id = pad
    try:
        output = model(**{name: tensor.to(embeddings.device) for name, tensor in inputs.items()}, **options)
    finally:
        config.pad_token_id = declared
    return output.logits.float().reshape(len(rows)).tolist()


def pad_of(model: Any) -> int | None:
    """The id that a decoder classifier takes for padding wherever it stands; None where it knows none."""
    declared = model.config.get_text_config().pad_token_id
    known = declared is not None and 0 <= declared < model.get_input_embeddings().weight.shape[0]
    return declared if known else None
