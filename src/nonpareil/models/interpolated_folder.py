"""Write a policy at a strength as a plain checkpoint, weight by weight: no model need be in memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ModelError
from nonpareil.models.adapters import adapter_base
from nonpareil.models.devices import cast_weights, resolve_dtype
from nonpareil.models.empty import empty_policy
from nonpareil.models.interpolation import (
    check_same_weights,
    finite,
    interpolated_model,
    interpolated_weights,
    part_weights,
    shared_names,
)
from nonpareil.models.loading import load_model
from nonpareil.models.memory import free_memory
from nonpareil.models.merging import LEAST, probe_logprobs
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.models.pretrained import reading
from nonpareil.models.saving import mend_generation_config
from nonpareil.models.stored_places import INDEX
from nonpareil.models.stored_weights import StoredWeights, stored_weights
from nonpareil.models.trained import keep_temperature, trained_temperature

SHARD_BYTES = 5 * 10**9
"""Of weights in one file; what is in memory at a time."""


@dataclass(frozen=True)
class Source:
    """A model by its name, as an option has it."""

    name_or_path: str
    revision: str | None
    tokenizer: Tokenizer
    init: ModelInit = PLAIN


def save_interpolated(
    trained: Source,
    reference: Source,
    strength: float,
    folder: Path,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> torch.dtype:
    """Write weights, config, tokenizer and the note of the training's temperature; returns the widest dtype.

    `dtype="auto"` is each weight's own, the wider one where the two models differ. Config, tokenizer and where
    completions end are the trained model's. An adapter, and a model whose files do not have its weights by its own
    names, is in memory in float32 meanwhile; of two of them one.

    Raises:
        ModelError, ConfigError: models that cannot be loaded, or not be interpolated. The folder is then void.
    """
    names = (trained.name_or_path, reference.name_or_path)
    there = stored_weights(
        reference.name_or_path,
        reference.revision,
        trust_remote_code=trust_remote_code,
        init=reference.init,
    )
    here = None
    if adapter_base(trained.name_or_path) is None and not trust_remote_code:
        here = stored_weights(trained.name_or_path, trained.revision, init=trained.init)
    if here is not None and here.streamed:
        check_same_weights(here, there, names)
        wide = _write_streamed(here, there, strength, folder, dtype)
    else:
        del here
        wide = _write_whole(trained, there, strength, folder, dtype, names, trust_remote_code)
    trained.tokenizer.save_pretrained(folder)
    temperature = trained_temperature(trained.name_or_path, trained.revision)
    if temperature is not None:
        keep_temperature(folder, temperature)
    return wide


def _write_streamed(
    trained: StoredWeights, reference: StoredWeights, strength: float, folder: Path, dtype: str
) -> torch.dtype:
    model, shared = trained.model, shared_names(trained, reference)
    part_weights(model, shared)
    given = None if dtype == "auto" else resolve_dtype(dtype, torch.device("cpu"))
    if given is not None:
        cast_weights(model, given)  # of no numbers: to know which weights its architecture keeps in float32
    types = {name: value.dtype for name, value in model.state_dict().items()}

    def weights() -> Iterator[tuple[str, Tensor]]:
        for (name, *_), value, stored in interpolated_weights(trained, reference, strength):
            to = stored if given is None else types[name]
            yield name, finite(value.to(to) if value.is_floating_point() else value, name, strength)

    wide = _write_shards(weights(), folder)
    mend_generation_config(model)
    with reading(str(folder), "the interpolated model's config could not be written"):
        for config in (model.config, model.config.get_text_config()):
            config.dtype = wide
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
    _check_ties(folder, shared)
    return wide


def _write_shards(weights: Iterator[tuple[str, Tensor]], folder: Path) -> torch.dtype:
    """Files of at most `SHARD_BYTES` (or of one weight), and their index; returns the widest dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, Tensor] = {}
    shards: list[list[str]] = []
    wide, size, total = torch.float16, 0, 0

    def write() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, value in weights:
        num_bytes = value.numel() * value.element_size()
        if held and size + num_bytes > SHARD_BYTES:
            write()
            size = 0
        held[name] = value.contiguous()
        size, total = size + num_bytes, total + num_bytes
        if value.is_floating_point() and value.dtype.itemsize >= wide.itemsize:
            wide = value.dtype
    write()
    files = [f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(1, len(shards) + 1)]
    files = files if len(files) > 1 else ["model.safetensors"]
    for place, file in enumerate(files):
        (folder / f"shard-{place}").rename(folder / file)
    if len(files) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return wide


def _check_ties(folder: Path, shared: list[list[str]]) -> None:
    """Whether what was written is read with the same weights tied.

    Raises:
        ModelError: an architecture that ties them whatever its config says.
    """
    found = empty_policy(str(folder))
    named = {} if found is None else found[0].state_dict(keep_vars=True)
    ids = [{id(named.get(name)) for name in names} for names in shared]
    if found is None or any(len(each) > 1 for each in ids) or len(set.union(*ids)) < len(ids):
        raise ModelError(
            "the two models share other weights, and this architecture cannot keep those of both: what was written "
            "would be read as another policy"
        )


def _write_whole(
    trained: Source,
    reference: StoredWeights,
    strength: float,
    folder: Path,
    dtype: str,
    names: tuple[str, str],
    trust_remote_code: bool,
) -> torch.dtype:
    """By a model in memory, float32; then read again and compared."""
    model = interpolated_model(
        trained.name_or_path,
        trained.revision,
        reference,
        strength,
        names=names,
        trust_remote_code=trust_remote_code,
        init=trained.init,
    )
    to = torch.float32 if dtype == "auto" else resolve_dtype(dtype, torch.device("cpu"))
    cast_weights(model, to)
    for name, value in model.state_dict().items():
        finite(value, name, strength)
    said = probe_logprobs(cast_weights(model, torch.float32))
    mend_generation_config(model)
    with reading(trained.name_or_path, "the interpolated model could not be written"):
        cast_weights(model, to).save_pretrained(folder)
    del model
    free_memory()
    written = load_model(str(folder), None, torch.float32, trust_remote_code=trust_remote_code)
    gap = float((said - probe_logprobs(written.eval())).abs().amax())
    if not gap <= LEAST:
        raise ModelError(
            f"what was written is read as another policy: log-probs of a token differ by {gap:.2g} nats"
        )
    return to
