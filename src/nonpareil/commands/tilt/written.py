"""What a tilt is written as: a plain Hugging Face model, and a `logit_bias` for servers."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.commands.tilt.groups import FOLDS, TiltGroups
from nonpareil.errors import ModelError
from nonpareil.files import write_json
from nonpareil.models.devices import cast_weights, device_of
from nonpareil.models.logprobs import TokenSequences
from nonpareil.models.memory import free_memory
from nonpareil.models.output_bias import (
    INSTEAD,
    Fold,
    check_head,
    fold_bias,
    fold_error,
    logits_at,
    unit_direction,
)
from nonpareil.models.pretrained import reading
from nonpareil.models.trained import keep_temperature
from nonpareil.terminal import tell

if TYPE_CHECKING:
    from nonpareil.commands.policies.local import LocalPolicy

MOST_ENTRIES = 1024
"""That vLLM takes of a request's logit_bias."""
MOST_BIAS = 100.0
"""To which servers clamp an entry, either way."""
CHECKED_TOKENS = 1024
"""Positions at which the folded model is held against the tilt; all their logits are in memory at once."""
ROUNDING_SHARE, MOST_SHARE = 0.05, 0.25
"""KL(tilt || model) / KL(tilt || reference): above the first float32 is tried, above the second it is refused."""


def write_logit_bias(path: Path, bias: Float[Tensor, " v"], counts: Float[Tensor, " v"]) -> tuple[int, float]:
    """Write {token id: bias}, the largest first; returns how many, and the share of the tilt that they are.

    Where there are more than a server takes, those that matter most are kept: by b^2 times how often the token
    comes, which is what a KL is made of. The share is theirs of its sum.
    """
    weight = counts * bias.square()
    kept = torch.argsort(weight, descending=True)[:MOST_ENTRIES]
    kept = kept[bias[kept] != 0]
    ordered = kept[torch.argsort(bias[kept].abs(), descending=True)]
    values = bias[ordered].clamp(-MOST_BIAS, MOST_BIAS)
    write_json(
        path,
        {str(token): round(value, 6) for token, value in zip(ordered.tolist(), values.tolist(), strict=True)},
    )
    return len(ordered), float(weight[ordered].sum() / weight.sum())


def write_model(
    folder: Path,
    policy: "LocalPolicy",
    model: PreTrainedModel,
    data: TiltGroups,
    bias: Float[Tensor, " v"],
    max_tokens: int,
) -> tuple[Fold, torch.dtype]:
    """Write the policy with the bias of its logits in its output layer, and read it again.

    It has the type that the policy is stored in, or float32, which is told, where rounding would change the tilt.
    `model`, in float32, is changed.

    Raises:
        ModelError: a model that cannot hold the bias, or what was written is no such policy: the folder is void.
    """
    name = policy.name_or_path
    head = check_head(name, model)
    fitted, held_out = _split(data)
    direction = None
    if getattr(head, "bias", None) is None:
        direction = unit_direction(model, fitted, max_tokens)
    states, before = logits_at(model, held_out)
    units = None if direction is None else states.double() @ direction.cpu()
    fold_bias(head, model, bias, direction)
    stored = policy.stored_dtype or torch.float32
    fold = _save(folder, policy, model, data, stored, (held_out, before, bias, units))
    if stored is not torch.float32 and fold.share > ROUNDING_SHARE:
        tell(
            f"the tilted model is written in float32: rounded to {str(stored).removeprefix('torch.')} it would be "
            f"another policy (KL from the tilt: {fold.share:.0%} of the tilt's own)"
        )
        stored = torch.float32
        fold = _save(folder, policy, model, data, stored, (held_out, before, bias, units))
    if not fold.share <= MOST_SHARE:
        raise ModelError(
            f"{name!r} with the tilt in its output layer, written and read again, is another policy than the tilt: "
            f"KL {fold.kl:.2g} nats per token, and the tilt's own is {fold.tilt_kl:.2g}. Its architecture may tie "
            f"input and output embeddings whatever its config says{INSTEAD}"
        )
    return fold, stored


def _split(data: TiltGroups) -> tuple[TokenSequences, TokenSequences]:
    """Completions for the direction, and of the last fold's prompts, one after another, some for its check."""
    last = data.fold == FOLDS - 1
    fitted = (~last).nonzero()[:, 0]
    order = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))
    rows = last.nonzero()[:, 0]
    held_out: list[int] = rows[torch.argsort(data.place[rows], stable=True)].tolist()
    lengths = torch.tensor([len(data.sequences.completion_ids[row]) for row in held_out]).cumsum(0)
    few = held_out[: max(1, int((lengths <= CHECKED_TOKENS).sum()))]
    return data.sequences.select(fitted[order].tolist()), data.sequences.select(few)


def _save(
    folder: Path,
    policy: "LocalPolicy",
    model: PreTrainedModel,
    data: TiltGroups,
    dtype: torch.dtype,
    checked: tuple[TokenSequences, Tensor, Tensor, Tensor | None],
) -> Fold:
    """Write all of the folder, read it again, and hold it against the tilt."""
    from nonpareil.models.loading import load_model

    held_out, before, bias, units = checked
    weights = {name: value.data for name, value in model.named_parameters()}
    with reading(policy.name_or_path, f"{policy.name_or_path!r} with its tilt could not be written"):
        cast_weights(model, dtype).save_pretrained(folder)
    for name, value in weights.items():  # as they were before the rounding
        model.get_parameter(name).data = value
    policy.tokenizer.save_pretrained(folder)
    keep_temperature(folder, data.temperature)
    device = device_of(model)
    trusted = policy.trust_remote_code
    written = load_model(str(folder), None, torch.float32, trust_remote_code=trusted)
    written.to(device).eval()  # type: ignore[arg-type]
    after = logits_at(written, held_out)[1]
    del written
    free_memory()
    return fold_error(before, after, bias, data.temperature, units)
