"""A policy of any strength: reference + strength * (trained - reference), over all weights.

Strength 0 is the reference, 1 the trained policy, and above 1 the training goes on in its own direction. WARP's
linear interpolation towards initialisation (arXiv:2406.16768) is the same with strengths of at most 1.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from nonpareil.errors import ConfigError, ModelError
from nonpareil.models.adapter_config import check_lora_config
from nonpareil.models.adapters import adapter_base
from nonpareil.models.loading import load_beside, load_merged, load_model
from nonpareil.models.merging import tie_as_it_is
from nonpareil.models.model_init import PLAIN, ModelInit
from nonpareil.models.pretrained import reading
from nonpareil.models.stored_weights import StoredWeights, in_memory
from nonpareil.settings import differing, flat

_LABELS = frozenset(
    {
        *(
            "_name_or_path",
            "name_or_path",
            "transformers_version",
            "architectures",
            "auto_map",
            "_commit_hash",
        ),
        *("dtype", "torch_dtype", "use_cache", "tie_word_embeddings", "_attn_implementation"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "problem_type"),
        *("id2label", "label2id", "tokenizer_class"),
        *("output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing"),
    }
)
"""Of a config: what decides no weight's meaning, and how weights are kept."""
_FACTOR = re.compile(r"\.lora_(embedding_)?[AB]\b")


def check_interpolable(
    trained: tuple[Any, Tokenizer], reference: tuple[Any, Tokenizer], names: tuple[str, str]
) -> None:
    """Refuse two models between which there is no line of models, by configs and tokenizers alone.

    `names` are theirs, the trained one's first.

    Raises:
        ConfigError: naming what differs, with both values, or the model whose weights are quantised.
    """
    for (config, _), name in zip((trained, reference), names, strict=True):
        if getattr(config, "quantization_config", None) is not None:
            raise ConfigError(
                f"{name!r} has quantised weights, which stand for numbers by a code and cannot be interpolated; "
                "name a model with plain weights"
            )
    between = f"no weights lie between {names[0]!r} and {names[1]!r}"
    if type(trained[0]) is not type(reference[0]):
        kinds = f"{type(trained[0]).__name__} and {type(reference[0]).__name__}"
        raise ConfigError(f"{between}: they are of other architectures, {kinds}")
    different = differing(*(_meaning(config) for config, _ in (trained, reference)))
    if different:
        listed = ", ".join(f"{key} {one!r} and {other!r}" for key, (one, other) in different.items())
        raise ConfigError(f"{between}: their configs differ in {listed}")
    ours, theirs = (tokenizer.get_vocab() for _, tokenizer in (trained, reference))
    if ours != theirs:
        token = min(set(ours.items()) ^ set(theirs.items()))[0]
        raise ConfigError(
            f"{between}: their tokenizers have other vocabularies (first: {token!r} is {ours.get(token)} and "
            f"{theirs.get(token)}), so that one row of the embeddings stands for two tokens"
        )


def _meaning(config: Any) -> dict[str, Any]:
    found = flat(config.to_dict())
    return {
        name: value
        for name, value in found.items()
        if not _LABELS & {*name.split(".")} and "drop" not in name  # rates of noise, which no policy here has
    }


def check_same_weights(trained: StoredWeights, reference: StoredWeights, names: tuple[str, str]) -> None:
    """Refuse models whose weights are not the same ones by name and shape.

    Raises:
        ConfigError: naming the first that differs.
    """
    ours, theirs = (
        {name: tuple(value.shape) for name, value in each.named().items()} for each in (trained, reference)
    )
    if different := differing(theirs, ours):
        name, (there, here) = min(different.items())
        raise ConfigError(
            f"no weights lie between {names[0]!r} and {names[1]!r}: {len(different)} of them differ in shape "
            f"(first: {name}, {here or 'none'} and {there or 'none'})"
        )


def interpolated(trained: Tensor, reference: Tensor, strength: float) -> Tensor:
    """The weight at a strength, computed in float32; 0 and 1 give the reference's and the trained one as they are.

    Raises:
        ValueError: whole numbers (a buffer) that differ, between which there are none.
    """
    if not trained.is_floating_point():
        if not torch.equal(trained, reference):
            raise ValueError("whole numbers that differ")
        return trained
    if strength == 0 or strength == 1:
        return reference if strength == 0 else trained
    start = reference.float()
    return start + strength * (trained.float() - start)


def interpolated_weights(
    trained: StoredWeights, reference: StoredWeights, strength: float
) -> Iterator[tuple[list[str], Tensor, torch.dtype]]:
    """Every weight at a strength, one at a time: its names (one weight in both models), value, stored dtype.

    The stored dtype is the wider one of the two models'.

    Raises:
        ModelError: naming a weight that is not finite, or cannot be interpolated.
    """
    for names in shared_names(trained, reference):
        one, other = trained.read(names[0]), reference.read(names[0])
        try:
            value = interpolated(one, other, strength)
        except ValueError as error:
            raise ModelError(f"{names[0]} cannot be interpolated: {error}") from error
        yield names, finite(value, names[0], strength), torch.promote_types(one.dtype, other.dtype)


def finite(value: Tensor, name: str, strength: float) -> Tensor:
    """The weight itself.

    Raises:
        ModelError: it holds what is no number.
    """
    if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
        raise ModelError(
            f"strength={strength:g}: {name} is NaN or infinite in {value.dtype}; lower the strength"
        )
    return value


def shared_names(trained: StoredWeights, reference: StoredWeights) -> list[list[str]]:
    """The names of each weight: an output head that is the embedding in one model alone is another weight."""
    ours, theirs = trained.named(), reference.named()
    found: dict[tuple[int, int], list[str]] = {}
    for name, value in ours.items():
        found.setdefault((id(value), id(theirs[name])), []).append(name)
    return list(found.values())


def part_weights(model: PreTrainedModel, shared: list[list[str]]) -> None:
    """Give names that are one weight in the model, and two among the `shared`, a weight each; its config says so.

    Raises:
        ModelError: the model ties them whatever its config says.
    """
    named: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    taken: set[int] = set()
    for names in shared:
        if id(named[names[0]]) in taken:
            own = nn.Parameter(named[names[0]].detach().clone(), False)
            for name in names:
                place, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(place), leaf, own)
        taken.add(id(named[names[0]]))
    tie_as_it_is(model)


def interpolated_model(
    name_or_path: str,
    revision: str | None,
    reference: StoredWeights,
    strength: float,
    *,
    names: tuple[str, str],
    trust_remote_code: bool = False,
    init: ModelInit = PLAIN,
) -> PreTrainedModel:
    """The trained model of this name at a strength, in float32 on the CPU; the reference is read weight by weight.

    Raises:
        ModelError, ConfigError: a model that cannot be loaded, or not be interpolated.
    """
    if adapter_base(name_or_path) is None:
        model = load_model(
            name_or_path, revision, torch.float32, trust_remote_code=trust_remote_code, init=init
        )
    else:
        model = load_merged(name_or_path, trust_remote_code=trust_remote_code, init=init).model
    trained = in_memory(model)
    check_same_weights(trained, reference, names)
    part_weights(model, shared_names(trained, reference))
    trained = in_memory(model)
    for own, value, _ in interpolated_weights(trained, reference, strength):
        model.state_dict()[own[0]].copy_(value)
    return model


def scaled_adapter(name_or_path: str, dtype: torch.dtype, strength: float, **options: Any) -> PreTrainedModel:
    """An adapter's base with the adapter beside it, whose update is scaled, in half precision on the CPU.

    Merged weights would be rounded, and a small change of large ones be lost. `options` as `load_beside`'s.

    Raises:
        ConfigError: an adapter that is more than factors of weights that stay as they are.
        ModelError: as `load_beside`.
    """
    from peft.tuners.lora import LoraLayer

    check_scalable(name_or_path, dtype)
    model = load_beside(name_or_path, dtype, **options)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.scaling:
                layer.scaling[adapter] *= strength
    return model


def check_scalable(name_or_path: str, dtype: torch.dtype) -> None:
    """Refuse an adapter that scaling beside its base would not make weaker or stronger as a whole.

    Raises:
        ConfigError: an adapter that is more than factors of weights that stay as they are.
        ModelError: one that cannot be read.
    """
    from peft import LoraConfig
    from peft.utils import load_peft_weights

    remedy = f"{name_or_path!r} cannot be scaled beside its base in {dtype}; give dtype=float32, where it is merged"
    with reading(name_or_path, f"the adapter {name_or_path!r} could not be read"):
        config = LoraConfig.from_pretrained(name_or_path)
        stored = load_peft_weights(str(Path(name_or_path).expanduser()), device="cpu")
    try:
        check_lora_config(config)
    except ConfigError as error:
        raise ConfigError(f"{remedy}: {error}") from error
    if others := sorted(name for name in stored if not _FACTOR.search(name)):
        raise ConfigError(f"{remedy}: it holds other weights than factors (first: {others[0]})")
