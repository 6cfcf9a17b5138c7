"""A model's weights by its own names, read one at a time where its files allow it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.empty import empty_policy
from nonpareil.models.loading import load_merged, load_model
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.models.pretrained import reading
from nonpareil.models.stored_places import stored_places


@dataclass(frozen=True)
class StoredWeights:
    """Parameters and persistent buffers of a model; a weight with several names (tied) is there under each."""

    model: PreTrainedModel
    """Without numbers (on the meta device) where `read` has them from files, else with them."""
    read: Callable[[str], Tensor]
    """A weight by one of its names, on the CPU, in the type that it is stored in."""
    streamed: bool
    """Whether each is read from its file when it is asked for."""

    def named(self) -> dict[str, Tensor]:
        """Every name with its weight, perhaps without numbers; tied names have the same one."""
        return dict(self.model.state_dict(keep_vars=True))


def stored_weights(
    name_or_path: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> StoredWeights:
    """The weights of a model directory, a hub model or a LoRA adapter's folder (merged into its base).

    All are in memory, in float32, of an adapter, of a model with code of its own, and where the files have other
    names than the model, or two tensors for one weight.

    Raises:
        ModelError: no such model, or weights that cannot be read.
    """
    if adapter_base(name_or_path) is not None:
        return in_memory(load_merged(name_or_path, trust_remote_code=trust_remote_code, init=init).model)
    if not trust_remote_code and (found := empty_policy(name_or_path, revision, init=init)) is not None:
        model, folder = found
        places = stored_places(folder)
        if (names := _stored_names(model, places)) is not None:
            shapes = {name: value.shape for name, value in model.state_dict().items()}
            return StoredWeights(model, _Reader(shapes, places, names), streamed=True)
    model = load_model(name_or_path, revision, torch.float32, trust_remote_code=trust_remote_code, init=init)
    return in_memory(model)


def in_memory(model: PreTrainedModel) -> StoredWeights:
    """The weights of a model that is loaded."""
    return StoredWeights(model, model.state_dict().__getitem__, streamed=False)


def _stored_names(model: PreTrainedModel, places: Mapping[str, Path]) -> dict[str, str] | None:
    """What each of a model's names is stored as; None where one weight has two tensors, which may differ."""
    tied: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(value), []).append(name)
    found: dict[str, str] = {}
    for names in tied.values():
        stored = [name for name in names if name in places]
        if len(stored) != 1:
            return None
        found |= dict.fromkeys(names, stored[0])
    return found


@dataclass(frozen=True)
class _Reader:
    shapes: Mapping[str, torch.Size]
    places: Mapping[str, Path]
    names: Mapping[str, str]

    def __call__(self, name: str) -> Tensor:
        stored = self.names[name]
        file = self.places[stored]
        with (
            reading(str(file.parent), f"{stored} could not be read from {str(file)!r}"),
            safe_open(file, framework="pt") as tensors,
        ):
            value = tensors.get_tensor(stored)
        if value.shape != self.shapes[name]:
            raise ModelError(
                f"{str(file)!r}: {stored} has the shape {list(value.shape)}, and the model's config says "
                f"{list(self.shapes[name])}"
            )
        return value
