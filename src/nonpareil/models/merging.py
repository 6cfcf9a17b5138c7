"""A LoRA adapter's folder as a policy: beside its base, or merged into it and then compared with what it was."""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nonpareil.errors import ModelError
from nonpareil.models.adapters import ADAPTER_WEIGHTS
from nonpareil.models.devices import device_of
from nonpareil.models.pretrained import check_finite, reading

if TYPE_CHECKING:
    from peft import PeftModel

PROBES = (4, 8)
"""Sequences, and tokens of each, on which two forms of one policy are compared."""
LEAST, MOST = 2e-4, 2e-3
"""Nats per token, averaged: by how much two float32 forms may differ, however little or much an adapter does."""
SHARE = 0.05
"""Of the adapter's own change of the log-probs, between these; of its KL, what rounding may take away."""

_EMBEDDINGS = re.compile(r"\.(embed_tokens|wte|word_embeddings|embed_in)\.(base_layer\.)?weight$")


def with_adapter(model: PreTrainedModel, directory: str) -> "PeftModel":
    """The model with an adapter beside its weights, in the adapter's own type.

    A vocabulary that was resized for the adapter is resized here, where the adapter's file holds all of it.

    Raises:
        ModelError: an adapter that cannot be read, that lacks weights, or that is of another model than this one.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    folder = Path(directory).expanduser()
    if not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        raise ModelError(f"the adapter {directory!r} has no {ADAPTER_WEIGHTS[0]}")
    subject = f"the adapter {directory!r} could not be added to {model.name_or_path!r}"
    remedy = "; is it of this base, with a vocabulary of this size?"
    with reading(directory, subject, remedy):
        stored = load_peft_weights(str(folder), device="cpu")
        _resize(model, stored)
        adapted = PeftModel.from_pretrained(model, str(folder))
        needed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        known = needed | set(get_peft_model_state_dict(adapted, save_embedding_layers=True))
        # PEFT leaves weights that the file lacks as they were, and ignores what the model lacks.
        if different := sorted((needed - stored.keys()) | (stored.keys() - known)):
            owner = "the file" if different[0] in needed else "the model"
            raise ModelError(
                f"{subject}: {owner} lacks {len(different)} weights (first: {different[0]}){remedy}"
            )
        check_finite(adapted, directory)
    return adapted


def adapter_vocabulary(directory: str) -> int | None:
    """How many tokens an adapter's file has embeddings of; None where it leaves them to its base.

    Raises:
        ModelError: a file that cannot be read.
    """
    from peft.utils import load_peft_weights

    with reading(directory, f"the adapter {directory!r} could not be read"):
        stored = load_peft_weights(str(Path(directory).expanduser()), device="cpu")
    rows = [len(weight) for name, weight in stored.items() if _EMBEDDINGS.search(name)]
    return max(rows, default=None)


@dataclass(frozen=True)
class Merged:
    """A plain model with an adapter's weights added to its own, and what it should say and said before."""

    model: PreTrainedModel
    trained: Float[Tensor, "b t v"]
    """Log-probs of the adapter beside its base; see `probe_logprobs`."""
    base: Float[Tensor, "b t v"]
    """Of the base alone."""


def merged(model: PreTrainedModel, directory: str) -> Merged:
    """Add an adapter's weights to a model's own, in the model's type: give it in float32.

    Log-probs of a few tokens are compared with those of the adapter beside the model.

    Raises:
        ModelError: as `with_adapter`; or the adapter cannot be merged into this model.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"the adapter {directory!r} cannot be merged into {model.name_or_path!r}, whose weights are quantised "
            "and would be rounded anew; name a plain base in its adapter_config.json (base_model_name_or_path), or "
            "load it with dtype=bfloat16, where an adapter stays beside its base"
        )
    adapted = with_adapter(model, directory)
    with torch.no_grad(), reading(directory, f"the adapter {directory!r} could not be merged"):
        with adapted.disable_adapter():
            base = probe_logprobs(model)
        trained = probe_logprobs(model)
        _part_shared_weights(adapted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of tied weights, which were parted
            plain: Any = adapted.merge_and_unload()
        tie_as_it_is(plain)
        what = f"the adapter {directory!r} merged into {model.name_or_path!r}"
        check_same_policy(trained, probe_logprobs(plain), base, what)
    return Merged(plain, trained, base)


@torch.no_grad()
def probe_logprobs(model: PreTrainedModel) -> Float[Tensor, "b t v"]:
    """A model's log-probs, nats, of every token after each of a few; float64, on the CPU."""
    embeddings: Any = model.get_input_embeddings()
    special = {
        token
        for config in (model.config, model.config.get_text_config())
        for name, value in vars(config).items()
        if "token_id" in name or "token_index" in name
        for token in (value if isinstance(value, list) else [value])
    }
    ids = [token for token in range(embeddings.weight.shape[0]) if token not in special] or [0]
    drawn = torch.randint(len(ids), PROBES, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor(ids)[drawn].to(device_of(model))
    return model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1).cpu()


def check_same_policy(trained: Tensor, now: Tensor, base: Tensor, what: str) -> None:
    """Refuse a form of a policy whose log-probs are not those that were trained.

    Raises:
        ModelError: naming `what`, and by how much it differs.
    """
    gap = _gap(trained, now)
    moved = _gap(trained, base)
    if not gap <= max(LEAST, min(MOST, SHARE * moved)):
        than = f", and the adapter moved them by {moved:.2g}" if moved < float("inf") else ""
        raise ModelError(
            f"{what} is another policy than the adapter beside it: log-probs differ by {gap:.2g} nats per token"
            f"{than}; use the adapter's folder, with transformers or vLLM, or train one of linear layers alone"
        )


def rounding_share(trained: Tensor, rounded: Tensor, base: Tensor) -> float:
    """What rounding adds to the KL of a policy from its base, as a share of it."""
    if trained.shape != base.shape:
        return 0.0  # of another vocabulary, which has no KL
    lost, moved = (float((trained.exp() * (trained - other)).sum(-1).mean()) for other in (rounded, base))
    return lost / max(moved, 1e-12)


def _gap(ones: Tensor, others: Tensor) -> float:
    """The mean over tokens of the largest difference of log-probs; NaN or infinite where any is."""
    if ones.shape != others.shape:
        return float("inf")
    return float((ones - others).abs().amax(-1).mean())


def _resize(model: PreTrainedModel, stored: Mapping[str, Tensor]) -> None:
    """Give the model as many tokens as the adapter's file has, where it has all their embeddings."""
    layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    names = {id(module): name for name, module in model.named_modules()}
    rows: dict[str, int] = {}
    for which, layer in layers.items():
        place = f"base_model.model.{names.get(id(layer))}"
        found = [stored[name] for name in (f"{place}.weight", f"{place}.base_layer.weight") if name in stored]
        rows |= {which: len(found[0])} if found else {}
    inputs: Any = layers["input"]
    if set(rows.values()) <= {len(inputs.weight)}:
        return
    outputs: Any = layers["output"]
    tied = outputs is not None and outputs.weight is inputs.weight
    if len(set(rows.values())) > 1 or (len(rows) < 2 and not tied):
        raise ValueError(
            f"it was trained with {max(rows.values())} tokens, the base has {len(inputs.weight)}, and its file "
            f"holds only the {' and '.join(rows)} embeddings of that size (save_embedding_layers=True saves all)"
        )
    model.resize_token_embeddings(rows.popitem()[1], mean_resizing=False)


def _part_shared_weights(adapted: "PeftModel") -> None:
    """Give every layer that shares a weight with an adapted one a copy of its own.

    An adapter of the embeddings leaves a tied output head as it was, but merging would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    changed = [f"{name}." for name, module in adapted.named_modules() if isinstance(module, kinds)]
    repeated = getattr(adapted.active_peft_config, "layer_replication", None)
    owners = defaultdict(list)
    for name, weight in adapted.named_parameters(remove_duplicate=False):
        if ".modules_to_save." not in name:  # copies of one another, where they are tied themselves
            owners[id(weight)].append(name)
    for names in owners.values():
        if repeated or any(name.startswith(tuple(changed)) for name in names):
            for name in names[1:]:
                place, _, leaf = name.rpartition(".")
                weight = adapted.get_parameter(name)
                setattr(adapted.get_submodule(place), leaf, nn.Parameter(weight.detach().clone(), False))


def tie_as_it_is(model: PreTrainedModel) -> None:
    """Let the config say whether input and output embeddings are one weight, so that a saved copy is read so."""
    inputs, outputs = (
        getattr(layer, "weight", None)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    if inputs is None or outputs is None or inputs is outputs:
        return
    if not inputs.is_meta and inputs.data_ptr() == outputs.data_ptr():
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
