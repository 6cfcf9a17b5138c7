"""LoRA: policy and anchor are two adapters on one base model, and the reference is the base with both off.

Nothing is copied: a base model, two adapters, and activations are all that training holds.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.errors import ConfigError
from nonpareil.models.anchors import Anchor

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

POLICY, ANCHOR = "default", "anchor"
"""PEFT saves an adapter of the name "default" where plain `PeftModel.from_pretrained` looks for it."""
REFERENCE = "__base__"
"""PEFT's word for rows without an adapter."""


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
    from peft import LoraConfig, get_peft_model

    if not isinstance(config, LoraConfig):
        raise ConfigError(f"peft_config is a {type(config).__name__}; only LoRA adapters are supported")
    for name in ("use_dora", "modules_to_save", "lora_dropout"):
        if value := getattr(config, name, None):
            raise ConfigError(
                f"peft_config.{name}={value!r} is not supported: policy and anchor share every other weight and "
                f"must be the models that are trained; remove it"
            )
    config = copy.deepcopy(config)
    config.revision = getattr(model.config, "_commit_hash", None)  # plain PEFT then loads this very base
    try:
        adapted = get_peft_model(model, config, adapter_name=POLICY)
    except ValueError as error:
        raise ConfigError(
            f"lora_target_modules={config.target_modules!r} cannot be used: {error}; name parts of the model's "
            "linear layers, or give all-linear"
        ) from error
    # Only the policy is saved as an adapter; the anchor lies beside the optimizer state.
    adapted.save_pretrained = _saving_policy_only(adapted)  # type: ignore[method-assign]
    return adapted


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
        return {name: p for name, p in self._policy.named_parameters() if f".{ANCHOR}." in name}

    def weights_of(self, policy: nn.Module) -> list[Tensor]:
        """The first adapter's, in the same order."""
        named = dict(policy.named_parameters())
        return [named[name.replace(f".{ANCHOR}.", f".{POLICY}.")] for name in self.weights()]

    def _copy_buffers(self, policy: nn.Module) -> None:
        """Both live on the same buffers."""


class RowAdapters:
    """Which adapter each row of a forward pass uses; the list may change from one pass to the next."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)


@contextmanager
def row_adapters(model: nn.Module, names: Sequence[str] = ()) -> Iterator[RowAdapters]:
    """Forward passes inside use one adapter a row: `POLICY`, `ANCHOR` or `REFERENCE`.

    PEFT's own way in leaves its hooks behind after an error, so that later passes silently use these adapters;
    here they always go.
    """
    from peft.tuners.lora import LoraLayer

    rows = RowAdapters(names)

    def route(module: nn.Module, inputs: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**options, "adapter_names": rows.names}

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    handles = [layer.register_forward_pre_hook(route, with_kwargs=True) for layer in layers]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def adapter_base(name_or_path: str) -> tuple[str, str | None] | None:
    """The base model that an adapter's folder names, with its revision; None where it is no folder of an adapter.

    Raises:
        ConfigError: an adapter that names no base, or is no LoRA.
    """
    directory = Path(name_or_path).expanduser()
    if not (directory / "adapter_config.json").is_file():
        return None
    config = json.loads((directory / "adapter_config.json").read_text())
    if not config.get("base_model_name_or_path") or config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{name_or_path!r}: adapter_config.json must name a base_model_name_or_path and be of peft_type LORA"
        )
    return config["base_model_name_or_path"], config.get("revision")


def merged(model: PreTrainedModel, directory: str) -> PreTrainedModel:
    """The model with an adapter's weights added to its own, in its own type: give it in float32."""
    from peft import PeftModel

    result: Any = PeftModel.from_pretrained(model, str(Path(directory).expanduser())).merge_and_unload()
    return result
