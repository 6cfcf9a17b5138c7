"""LoRA: policy and anchor are two adapters on one base model, and the reference is the base with both off.

Nothing is copied: a base model, two adapters, and activations are all that training holds.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.errors import ConfigError, DataError, ModelError
from nonpareil.models.adapter_config import (
    check_lora_config,
    check_magnitudes,
    check_mergeable,
    check_saved_modules,
    check_target_parameters,
)
from nonpareil.models.anchors import Anchor
from nonpareil.models.saved_modules import in_float32, saved_modules
from nonpareil.text_files import parse_json, read_text

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

POLICY, ANCHOR = "default", "anchor"
"""PEFT saves an adapter of the name "default" where plain `PeftModel.from_pretrained` looks for it."""
REFERENCE = "__base__"
"""PEFT's word for rows without an adapter."""
_IN_ADAPTER = re.compile(r"\.(lora_\w+|modules_to_save)\.")
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

    if is_adapted(model):
        raise ConfigError(
            f"peft_config (or use_peft) with a {type(model).__name__}, which has an adapter: merge that first "
            "(model.merge_and_unload()), or leave peft_config out"
        )
    check_lora_config(config)
    check_target_parameters(model, config)
    config = copy.deepcopy(config)
    config.revision = getattr(model.config, "_commit_hash", None)  # plain PEFT then loads this very base
    try:
        adapted = get_peft_model(model, config, adapter_name=POLICY)
    except ValueError as error:
        other = f", lora_target_parameters={config.target_parameters!r}" if config.target_parameters else ""
        raise ConfigError(
            f"lora_target_modules={config.target_modules!r}{other} cannot be used: {error}; name parts of the "
            "model's linear layers, or give all-linear"
        ) from error
    return _as_policy(adapted)


def take_policy_adapter(adapted: Any, *, fixed: bool) -> "PeftModel":
    """A PEFT model that a user made, as `add_policy_adapter` makes one: its adapter is trained.

    `fixed`: what it is compared with is the base alone.

    Raises:
        ConfigError: an adapter of another name or kind, one that is frozen, or one that is not the base any more
            where it is compared with that.
    """
    given = f"model is a {type(adapted).__name__}"
    if POLICY not in adapted.peft_config:
        names = ", ".join(map(repr, adapted.peft_config))
        raise ConfigError(
            f"{given} with the adapter {names}; what is trained is called {POLICY!r}, PEFT's own name"
        )
    check_lora_config(adapted.peft_config[POLICY])
    if not any(weight.requires_grad for weight in adapted.parameters()):
        raise ConfigError(
            f"{given} with nothing to train: load it with PeftModel.from_pretrained(is_trainable=True)"
        )
    if fixed and _has_learnt(adapted):
        raise ConfigError(
            f"{given} whose adapter has been trained, and the reference of this method, which never moves, would "
            "be the base without it: best-of-N of another model. Merge the adapter (model.merge_and_unload()) and "
            "give a peft_config for a new one"
        )
    return _as_policy(adapted)


def _has_learnt(adapted: nn.Module) -> bool:
    """Whether the policy's adapter changes its base: its second factors begin as zeros."""
    ups = [
        weight
        for name, weight in adapted.named_parameters()
        if re.search(rf"\.lora_(embedding_)?B\.{POLICY}(\.|$)", name)
    ]
    copies = [
        (weight, dict(wrapper.original_module.named_parameters())[name])
        for wrapper in saved_modules(adapted).values()
        for name, weight in wrapper.modules_to_save[POLICY].named_parameters()
    ]
    return any(bool(weight.any()) for weight in ups) or any(
        not torch.equal(mine.float(), before.float()) for mine, before in copies
    )


def _as_policy(adapted: Any) -> "PeftModel":
    """Checked, its adapter in float32, and saved alone.

    Raises:
        ConfigError: as `add_policy_adapter`.
    """
    config: Any = adapted.peft_config[POLICY]
    if hasattr(adapted.get_base_model().get_output_embeddings(), "lora_A"):
        raise ConfigError(
            f"lora_target_modules={config.target_modules!r} adapts the output head, which is applied to chunks of "
            "tokens, not rows; leave it out"
        )
    check_mergeable(adapted)
    check_magnitudes(adapted)
    check_saved_modules(adapted, config.modules_to_save or [])
    in_float32(adapted, POLICY)
    # Only the policy is saved as an adapter; the anchor lies beside the optimizer state.
    adapted.save_pretrained = _saving_policy_only(adapted)
    return adapted


@contextmanager
def adapter_dropout(model: nn.Module, seed: int) -> Iterator[None]:
    """Passes inside drop inputs of the policy's adapter, as `lora_dropout` says; all else is as it was.

    What is dropped follows from the seed alone, and nothing else is drawn at random otherwise for it.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        and POLICY in layer.lora_dropout
        and getattr(layer.lora_dropout[POLICY], "p", None)
    ]
    if not layers:
        yield
        return
    modules = [module for layer in layers for module in (layer, layer.lora_dropout[POLICY])]
    before = [module.training for module in modules]
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for module in modules:
            module.training = True
        try:
            yield
        finally:
            for module, was in zip(modules, before, strict=True):
                module.training = was


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
    apart it is near the average of the weights, not equal to it. Of DoRA the lengths are averaged too, and of
    `modules_to_save` the anchor's own copies.
    """

    def __init__(self, policy: "PeftModel", rate: float = 0.0, refresh_steps: int = 0):
        self.rate, self.refresh_steps = rate, refresh_steps
        self._policy = policy
        self.role = ANCHOR if self.moves else REFERENCE
        """The name under which rows are drawn from it."""
        if self.moves:
            config = copy.deepcopy(policy.peft_config[POLICY])
            config.inference_mode = True  # else set_adapter would train it
            try:
                policy.add_adapter(ANCHOR, config)
            except ValueError as error:  # PEFT before 0.20
                if not getattr(config, "target_parameters", None):
                    raise
                raise ConfigError(
                    "lora_target_parameters with an anchor that moves needs two such adapters on one model, and "
                    f"this version of PEFT has one at most; install a later one, or hold the anchor ({error})"
                ) from error
            policy.set_adapter(POLICY)
            in_float32(policy, ANCHOR)
            self._move(policy, 1.0)
            for weight in self.weights().values():
                weight.requires_grad_(False)

    def weights(self) -> dict[str, Tensor]:
        """All that is the second adapter's own, by name."""
        named = self._policy.named_parameters()
        # By parts of the name: an embedding's factor ends in the adapter's name, a layer's goes on with .weight
        return {name: p for name, p in named if _IN_ADAPTER.search(name) and ANCHOR in name.split(".")}

    def weights_of(self, policy: nn.Module) -> list[Tensor]:
        """The first adapter's, in the same order."""
        named = dict(policy.named_parameters())
        parts = [name.split(".") for name in self.weights()]
        return [named[".".join(POLICY if part == ANCHOR else part for part in name)] for name in parts]

    def _copy_buffers(self, policy: nn.Module) -> None:
        """Both live on the same buffers."""


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
