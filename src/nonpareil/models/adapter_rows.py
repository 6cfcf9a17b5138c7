"""Rows of one pass with different adapters: the policy's, the anchor's, or none, which is the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nonpareil.models.adapters import ANCHOR, POLICY, REFERENCE
from nonpareil.models.saved_modules import saved_modules


class RowAdapters:
    """Which adapter each row of a forward pass uses; the list may change from one pass to the next."""

    def __init__(self, names: Sequence[str]):
        self.names = names

    @property
    def names(self) -> Sequence[str]:
        """One adapter per row."""
        return self._names

    @names.setter
    def names(self, names: Sequence[str]) -> None:
        """Name the rows of the next passes."""
        if list(names) != getattr(self, "_names", None):  # most tokens have the rows of the token before
            self._names, self.used = list(names), set(names)
            self._masks: dict[tuple, Tensor] = {}

    def mask(self, ranks: dict[str, int], like: Tensor) -> Tensor:
        """1 where a row (first axis) uses the adapter that a column of the stacked factors belongs to, else 0."""
        key = (tuple(ranks.items()), like.dtype, like.device, like.dim())
        if key not in self._masks:
            columns = [name for name, rank in ranks.items() for _ in range(rank)]
            kinds = {name: [float(column == name) for column in columns] for name in self.used}
            mask = torch.tensor([kinds[name] for name in self.names], dtype=like.dtype, device=like.device)
            self._masks[key] = mask.view(len(mask), *[1] * (like.dim() - 2), -1)
        return self._masks[key]

    def places(self, name: str, device: torch.device) -> Tensor:
        """The rows that use an adapter."""
        key = (name, device)
        if key not in self._masks:
            rows = [row for row, other in enumerate(self.names) if other == name]
            self._masks[key] = torch.tensor(rows, device=device)
        return self._masks[key]

    def check(self, x: Tensor) -> None:
        """Refuse a pass of other rows than those that adapters were named for.

        Raises:
            ValueError: their number differs.
        """
        if len(x) != len(self.names):
            raise ValueError(f"{len(self.names)} adapter_names for a pass of {len(x)} rows")


class StackedAdapters:
    """The forward pass of one linear layer with both adapters side by side, in the type of the base.

    Two small products serve all rows, whichever adapter each uses: a mask puts the others' part to zero. PEFT's own
    way gathers and scatters each adapter's rows in every layer at every token. DoRA then gives each row of the
    weight the adapter's length, which is a factor for each output; the reference's is 1.
    """

    def __init__(self, layer: Any, rows: RowAdapters):
        self.layer, self.rows = layer, rows
        names = [name for name in (POLICY, ANCHOR) if name in layer.lora_A]
        self.ranks = {name: layer.lora_A[name].out_features for name in names}
        dtype = layer.base_layer.weight.dtype
        down = [layer.lora_A[name].weight.detach() for name in names]
        up = [layer.lora_B[name].weight.detach() * layer.scaling[name] for name in names]
        self.down, self.up = torch.cat(down).to(dtype), torch.cat(up, dim=1).to(dtype).T
        self.lengths = {name: _length_factors(layer, name) for name in names if layer.lora_variant}

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output `[rows, ..., out]`.

        Raises:
            ValueError: the rows are not those that adapters were named for.
        """
        self.rows.check(x)
        if self.rows.used == {REFERENCE}:
            return self.layer.base_layer(x)
        bias = self.layer.base_layer.bias if self.lengths else None
        result = self.layer.base_layer(x) if bias is None else nn.functional.linear(x, self._weight)
        states = nn.functional.linear(x, self.down)
        states = states * self.rows.mask(self.ranks, states)
        # view, not reshape: the sum must land in the result itself.
        result.view(-1, result.shape[-1]).addmm_(states.flatten(0, -2), self.up)
        if not self.lengths:
            return result
        for name, factors in self.lengths.items():
            if name in self.rows.used:
                places = self.rows.places(name, x.device)
                result[places] = (result[places] * factors).to(result.dtype)
        return result if bias is None else result + bias

    @property
    def _weight(self) -> Tensor:
        return self.layer.base_layer.weight


def _length_factors(layer: Any, name: str) -> Tensor:
    """What DoRA multiplies each output by, float32: its length over that of the weight with the factors added."""
    change = layer.lora_B[name].weight.detach().float() @ layer.lora_A[name].weight.detach().float()
    weight = layer.base_layer.weight.detach().float() + layer.scaling[name] * change
    return layer.lora_magnitude_vector[name].weight.detach().float() / torch.linalg.norm(weight, dim=1)


class SavedByRow:
    """The forward pass of a layer that adapters have copies of: each row by its own adapter's."""

    def __init__(self, wrapper: Any, rows: RowAdapters):
        self.wrapper, self.rows = wrapper, rows

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The layer's output `[rows, ...]`; where all rows use one adapter, `x` may have any shape.

        Raises:
            ValueError: the rows are not those that adapters were named for.
        """
        if len(self.rows.used) == 1:
            return self._copy(next(iter(self.rows.used)))(x, *arguments, **options)
        self.rows.check(x)
        result: Tensor | None = None
        for name in sorted(self.rows.used):
            places = self.rows.places(name, x.device)
            part = self._copy(name)(x[places], *arguments, **options)
            result = part.new_empty(len(x), *part.shape[1:]) if result is None else result
            result[places] = part
        assert result is not None
        return result

    def _copy(self, name: str) -> nn.Module:
        return self.wrapper.original_module if name == REFERENCE else self.wrapper.modules_to_save[name]


class ParametersOfOne:
    """The forward pass of a layer whose own parameters adapters change (`target_parameters`): all rows by one.

    The weights of experts are changed as a whole, so two adapters need two passes.
    """

    def __init__(self, wrapper: Any, rows: RowAdapters):
        self.rows, self.layers = rows, [wrapper]
        while changes_parameters(self.layers[-1].base_layer):  # one parameter each
            self.layers.append(self.layers[-1].base_layer)

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """The layer's output.

        Raises:
            ValueError: rows of several adapters.
        """
        if len(self.rows.used) != 1:
            raise ValueError(f"rows of {sorted(self.rows.used)} in one pass; target_parameters take one")
        name, wrapper = next(iter(self.rows.used)), self.layers[0]
        if name == REFERENCE:
            return wrapper.get_base_layer()(x, *arguments, **options)
        before = [layer._active_adapter for layer in self.layers]
        try:
            for layer in self.layers:
                layer._active_adapter = [name]
            return type(wrapper).forward(wrapper, x, *arguments, **options)
        finally:
            for layer, was in zip(self.layers, before, strict=True):
                layer._active_adapter = was


def changes_parameters(layer: Any) -> bool:
    """Whether it is PEFT's layer for one parameter of a module, of experts for example."""
    return hasattr(layer, "parameter_name") and hasattr(layer, "lora_A")


def takes_one_adapter(model: nn.Module) -> bool:
    """Whether all rows of a pass must have the same adapter."""
    return any(changes_parameters(module) for module in model.modules())


@contextmanager
def row_adapters(model: nn.Module, names: Sequence[str] = ()) -> Iterator[RowAdapters]:
    """Forward passes inside use one adapter per row: `POLICY`, `ANCHOR` or `REFERENCE`; no gradient reaches one.

    PEFT's own way in leaves its hooks behind after an error, so that later passes silently use these adapters;
    here they always go. Adapters must not change inside. There is no dropout.
    """
    from peft.tuners.lora import LoraLayer

    rows = RowAdapters(names)

    def route(module: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**options, "adapter_names": rows.names}

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    wrappers = [layer for layer in layers if changes_parameters(layer)]
    inner = {id(layer.base_layer) for layer in wrappers}
    layers = [layer for layer in layers if not changes_parameters(layer)]
    replaced: list[tuple[Any, Any]] = [
        (wrapper, ParametersOfOne(wrapper, rows)) for wrapper in wrappers if id(wrapper) not in inner
    ]
    replaced += [(layer, StackedAdapters(layer, rows)) for layer in layers if can_be_stacked(layer)]
    others = [layer for layer in layers if not can_be_stacked(layer)]
    replaced += [(wrapper, SavedByRow(wrapper, rows)) for wrapper in saved_modules(model).values()]
    handles = [layer.register_forward_pre_hook(route, with_kwargs=True) for layer in others]
    try:
        for layer, ours in replaced:
            layer.forward = ours
        yield rows
    finally:
        for layer, _ in replaced:
            vars(layer).pop("forward", None)
        for handle in handles:
            handle.remove()


def can_be_stacked(layer: Any) -> bool:
    """Whether it is LoRA or DoRA on a plain linear layer; embeddings, quantised and merged ones are PEFT's."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.variants import DoraLinearVariant

    kinds = [variant for variant in layer.lora_variant.values() if not isinstance(variant, DoraLinearVariant)]
    plain = type(layer) is Linear and isinstance(layer.base_layer, nn.Linear) and not kinds
    return (
        plain
        and not (layer.merged or layer.disable_adapters or "forward" in vars(layer))
        and all(up.bias is None for up in layer.lora_B.values())
    )
