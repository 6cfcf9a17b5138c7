"""LoRA: policy and anchor are two adapters on one base model, and the reference is the base with both off.

Nothing is copied: a base model, two adapters, and activations are all that training holds.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.models.adapter_config import check_lora_config, check_mergeable
from nonpareil.models.anchors import Anchor
from nonpareil.text_files import parse_json, read_text

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

POLICY, ANCHOR = "default", "anchor"
"""PEFT saves an adapter of the name "default" where plain `PeftModel.from_pretrained` looks for it."""
REFERENCE = "__base__"
"""PEFT's word for rows without an adapter."""
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""One of them lies in every directory of an adapter."""


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model: of a PEFT model the one inside, whose layers hold the adapters."""
    inner: Any = model
    return inner.get_base_model() if is_adapted(model) else inner


def add_policy_adapter(model: PreTrainedModel, config: "LoraConfig") -> "PeftModel":
    """Freeze the model and give it the adapter that is trained, in float32 whatever the model is in.

    Raises:
        ConfigError: a kind of adapter that cannot be mixed or averaged, or target modules the model has not.
    """
    from peft import get_peft_model

    check_lora_config(config)
    config = copy.deepcopy(config)
    config.revision = getattr(model.config, "_commit_hash", None)  # plain PEFT then loads this very base
    try:
        adapted = get_peft_model(model, config, adapter_name=POLICY)
    except ValueError as error:
        raise ConfigError(
            f"lora_target_modules={config.target_modules!r} cannot be used: {error}; name parts of the model's "
            "linear layers, or give all-linear"
        ) from error
    if hasattr(model.get_output_embeddings(), "lora_A"):
        raise ConfigError(
            f"lora_target_modules={config.target_modules!r} adapts the output head, which is applied to chunks of "
            "tokens, not rows; leave it out"
        )
    check_mergeable(adapted)
    # Only the policy is saved as an adapter; the anchor lies beside the optimizer state.
    adapted.save_pretrained = _saving_policy_only(adapted)  # type: ignore[method-assign]
    return adapted


def trained_rank(model: Any) -> int | None:
    """The largest rank of the policy's adapter; None without one."""
    if not is_adapted(model):
        return None
    config = model.peft_config[POLICY]
    return max([config.r, *config.rank_pattern.values()])


def saved_adapter(adapted: Any) -> tuple[dict[str, Any], list[str]]:
    """The policy's adapter as it would be saved: its settings, and the names of its weights."""
    from peft.utils import get_peft_model_state_dict

    names = get_peft_model_state_dict(adapted, adapter_name=POLICY, save_embedding_layers=False)
    return adapted.peft_config[POLICY].to_dict(), list(names)


def _saving_policy_only(adapted: "PeftModel") -> Any:
    def save_pretrained(directory: str, **options: Any) -> None:
        save = type(adapted).save_pretrained
        save(adapted, directory, **{**options, "selected_adapters": [POLICY]})

    return save_pretrained


def save_adapter(adapted: "PeftModel", name: str, directory: Path) -> Path:
    """Write one adapter; returns the folder that it lies in."""
    type(adapted).save_pretrained(adapted, str(directory), selected_adapters=[name])
    return directory if name == POLICY else directory / name


class AdapterAnchor(Anchor):
    """An anchor that is a second adapter on the policy's base, float32; a fixed one is the base itself.

    The average is of the factors A and B, not of their product: between a policy and an anchor that have moved
    apart it is near the average of the weights, not equal to it.
    """

    def __init__(self, policy: "PeftModel", rate: float = 0.0, refresh_steps: int = 0):
        self.rate, self.refresh_steps = rate, refresh_steps
        self._policy = policy
        self.role = ANCHOR if self.moves else REFERENCE
        """The name under which rows are drawn from it."""
        if self.moves:
            config = copy.deepcopy(policy.peft_config[POLICY])
            config.inference_mode = True  # else set_adapter would train it
            policy.add_adapter(ANCHOR, config)
            policy.set_adapter(POLICY)
            self._move(policy, 1.0)
            for weight in self.weights().values():
                weight.requires_grad_(False)

    def weights(self) -> dict[str, Tensor]:
        """The second adapter's factors by name."""
        named = self._policy.named_parameters()
        # By parts of the name: an embedding's factor ends in the adapter's name, a layer's goes on with .weight
        return {name: p for name, p in named if "lora_" in name and ANCHOR in name.split(".")}

    def weights_of(self, policy: nn.Module) -> list[Tensor]:
        """The first adapter's, in the same order."""
        named = dict(policy.named_parameters())
        parts = [name.split(".") for name in self.weights()]
        return [named[".".join(POLICY if part == ANCHOR else part for part in name)] for name in parts]

    def _copy_buffers(self, policy: nn.Module) -> None:
        """Both live on the same buffers."""


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


class StackedAdapters:
    """The forward pass of one linear layer with both adapters side by side, in the type of the base.

    Two small products serve all rows, whichever adapter each uses: a mask puts the others' part to zero. PEFT's own
    way gathers and scatters each adapter's rows in every layer at every token.
    """

    def __init__(self, layer: Any, rows: RowAdapters):
        self.layer, self.rows = layer, rows
        names = [name for name in (POLICY, ANCHOR) if name in layer.lora_A]
        self.ranks = {name: layer.lora_A[name].out_features for name in names}
        dtype = layer.base_layer.weight.dtype
        down = [layer.lora_A[name].weight.detach() for name in names]
        up = [layer.lora_B[name].weight.detach() * layer.scaling[name] for name in names]
        self.down, self.up = torch.cat(down).to(dtype), torch.cat(up, dim=1).to(dtype).T

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output `[rows, ..., out]`.

        Raises:
            ValueError: the rows are not those that adapters were named for.
        """
        if len(x) != len(self.rows.names):
            raise ValueError(f"{len(self.rows.names)} adapter_names for a pass of {len(x)} rows")
        result = self.layer.base_layer(x)
        if self.rows.used == {REFERENCE}:
            return result
        states = nn.functional.linear(x, self.down)
        states = states * self.rows.mask(self.ranks, states)
        # view, not reshape: the sum must land in the result itself.
        result.view(-1, result.shape[-1]).addmm_(states.flatten(0, -2), self.up)
        return result


@contextmanager
def row_adapters(model: nn.Module, names: Sequence[str] = ()) -> Iterator[RowAdapters]:
    """Forward passes inside use one adapter per row: `POLICY`, `ANCHOR` or `REFERENCE`; no gradient reaches one.

    PEFT's own way in leaves its hooks behind after an error, so that later passes silently use these adapters;
    here they always go. Adapters must not change inside.
    """
    from peft.tuners.lora import LoraLayer

    rows = RowAdapters(names)

    def route(module: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**options, "adapter_names": rows.names}

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    stacked = [layer for layer in layers if _can_be_stacked(layer)]
    others = [layer for layer in layers if not _can_be_stacked(layer)]
    handles = [layer.register_forward_pre_hook(route, with_kwargs=True) for layer in others]
    try:
        for layer in stacked:
            layer.forward = StackedAdapters(layer, rows)
        yield rows
    finally:
        for layer in stacked:
            vars(layer).pop("forward", None)
        for handle in handles:
            handle.remove()


def _can_be_stacked(layer: Any) -> bool:
    """Whether it is plain LoRA on a plain linear layer; embeddings, quantised and merged ones are PEFT's."""
    from peft.tuners.lora import Linear

    plain = type(layer) is Linear and isinstance(layer.base_layer, nn.Linear) and not layer.lora_variant
    return (
        plain
        and not (layer.merged or layer.disable_adapters or "forward" in vars(layer))
        and all(up.bias is None for up in layer.lora_B.values())
    )


def adapter_base(name_or_path: str) -> tuple[str, str | None] | None:
    """The base model that an adapter's folder names, with its revision; None where it is no folder of an adapter.

    Raises:
        ConfigError: an adapter that names no base, or is no LoRA.
        ModelError: an adapter_config.json that is damaged.
    """
    directory = Path(name_or_path).expanduser()
    if not (directory / "adapter_config.json").is_file():
        return None
    file = directory / "adapter_config.json"
    try:
        config = parse_json(read_text(file), repr(str(file)))
    except (DataError, OSError) as error:
        raise ModelError(f"{name_or_path!r} is no adapter that can be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{str(file)!r} holds a {type(config).__name__}, not an object of settings")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base or config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{name_or_path!r}: adapter_config.json must name a base_model_name_or_path and be of peft_type LORA"
        )
    for name, value in (("base_model_name_or_path", base), ("revision", revision)):
        if not isinstance(value, str | None):
            raise ModelError(f"{str(file)!r}: {name}={value!r} must be text")
    return base, revision
