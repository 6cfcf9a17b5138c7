"""Linear layers whose weights are laid out once a batch for the CPU's matrix product, not anew at every token.

oneDNN multiplies by weights in a layout of its own. With few rows, as when completions are drawn token by token,
bringing them into it takes as long as the product itself. torch's compiler lays them out beforehand, by operators
that have no public name; they serve here only where they are found to give what `torch.nn.functional.linear` gives.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.engines.batches import DrawRequest, Unit
from nonpareil.engines.branches import BRANCHES, branches_for
from nonpareil.engines.cache import in_place_cache, is_in_place
from nonpareil.engines.draw_memory import cache_bytes
from nonpareil.models.devices import device_of

FEWEST_STEPS = 24
"""Tokens of a completion from which packing pays: it costs what 8 to 16 of them save."""
MOST_ROWS = {torch.bfloat16: 128, torch.float32: 2**31}
"""Completions of a batch up to which it pays: with many, the product is all; in float32 it is quicker itself."""
SMALLEST_SIDE = 32
"""Inputs or outputs of a layer below which there is little to gain: factors of adapters, gates of experts."""


@dataclass
class Packing:
    """When an engine packs a model's weights for a batch of draws, and the memory that it may take for that.

    Packed weights take half the place of the keys that samples would hold, had each its prompt for itself:
    sharing prompts lowers the peak of drawing, and packing does not undo that.
    """

    model: PreTrainedModel
    spare_bytes: int = 0
    """Memory that is free while drawing for another reason, such as that of gradients."""

    @contextmanager
    def of(self, requests: Sequence[DrawRequest], units: Sequence[Unit], shared: bool) -> Iterator[None]:
        """Packed weights for one batch, where they pay and fit; `shared`: samples share their prompts' keys."""
        steps = requests[0].sampling.max_completion_length
        if steps < FEWEST_STEPS or device_of(self.model).type != "cpu":
            yield
            return
        counts = [len(unit.samples) for unit in units]
        lengths = [len(requests[unit.request].prompts[unit.prompt].token_ids) for unit in units]
        shared = shared and is_in_place(in_place_cache(self.model.config, max(lengths) + steps))
        branches = branches_for(counts, BRANCHES if shared else 1)
        saved = sum((n - -(-n // branches)) * length for n, length in zip(counts, lengths, strict=True))
        room = (
            self.spare_bytes + saved * (cache_bytes(self.model.config, self.model.dtype.itemsize) or 0) // 2
        )
        with packed_weights(self.model, sum(counts), room):
            yield


class PackedLinear:
    """The forward pass of one linear layer, from a packed copy of its weight."""

    def __init__(self, layer: nn.Linear, rows: int):
        """`rows`: of the passes to come; the layout suits them, and serves others too."""
        self.plain, self.bias = layer.weight, layer.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        self._operator = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """What the layer would answer; no gradient flows."""
        if x.dtype != self.plain.dtype or torch.is_autocast_enabled(
            "cpu"
        ):  # a model may begin autocast itself
            return nn.functional.linear(x, self.plain, self.bias)
        return self._operator(x, self.weight, self.bias, "none", [], "")


@contextmanager
def packed_weights(model: nn.Module, rows: int, room: int) -> Iterator[None]:
    """Passes inside use packed copies of the weights of plain linear layers; on a CPU only, and without gradients.

    Weights must not change inside; whatever happens there, none stays packed. Layers that are more than
    `torch.nn.Linear`, whose dtype does not gain, or that do not fit any more into `room`, stay as they are.

    Args:
        rows: tokens of a pass, about.
        room: bytes that the copies may take together.
    """
    layers = [module for module in model.modules() if _is_plain(module)] if _operators_exist() else []
    try:
        for layer in layers:
            size = layer.weight.nbytes
            if rows > MOST_ROWS.get(layer.weight.dtype, 0) or size > room:
                continue
            if (ours := _packed(layer, rows)) is not None:
                layer.forward = ours  # type: ignore[method-assign, assignment]
                room -= size
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _operators_exist() -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    # Under autocast a layer's weight is not what it multiplies by.
    return known and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


def _is_plain(module: Any) -> TypeGuard[nn.Linear]:
    """Whether a layer is a product with its own weight and nothing else; quantised and sharded weights are not."""
    if type(module) is not nn.Linear or "forward" in vars(module) or module._forward_pre_hooks:
        return False
    weight = module.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == "cpu"
        and weight.shape == (module.out_features, module.in_features)
        and min(weight.shape) >= SMALLEST_SIDE
        and (module.bias is None or module.bias.dtype == weight.dtype)
    )


_ALIKE: dict[tuple[torch.Size, torch.dtype, bool], bool] = {}


@torch.no_grad()
def _packed(layer: nn.Linear, rows: int) -> PackedLinear | None:
    """The layer's packed pass; None where the operators fail on it, or once gave other numbers for its size."""
    key = (layer.weight.shape, layer.weight.dtype, layer.bias is not None)
    if not _ALIKE.get(key, True):
        return None
    try:
        ours = PackedLinear(layer, rows)
        if key not in _ALIKE:
            states = torch.linspace(-1, 1, min(rows, 64) * layer.in_features).to(layer.weight.dtype)
            states = states.view(-1, layer.in_features)
            expected = nn.functional.linear(states, layer.weight, layer.bias)
            if not expected.isfinite().all():
                return None  # which says nothing of the operators
            _ALIKE[key] = _equal(ours(states), expected)
        return ours if _ALIKE[key] else None
    except RuntimeError:  # a processor without products in this dtype, or no memory left
        return None


def _equal(ours: Tensor, expected: Tensor) -> bool:
    """Bit for bit; in float32 up to the rounding of another order of its sums."""
    if expected.dtype != torch.float32:
        return torch.equal(ours, expected)
    return bool((ours - expected).abs().max() <= 1e-5 * expected.abs().max())
