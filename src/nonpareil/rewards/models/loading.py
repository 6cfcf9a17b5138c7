"""Load a sequence-classification model as a reward model, or say why its scores would mean nothing."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from nonpareil.errors import ModelError
from nonpareil.models.loading import load_tokenizer
from nonpareil.models.pretrained import check_local_path, read_config, read_model

HEAD_NAMES = ("score", "classifier", "classification_head")


def load_classifier(
    path: str,
    tokenizer: Any | None,
    dtype: torch.dtype,
    revision: str | None,
    *,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A reward model on the CPU in evaluation mode, head in float32, and its own tokenizer.

    Raises:
        ModelError: no such model, no tokenizer, more than one label, or weights the checkpoint does not hold or
            that are no numbers.
        ConfigError: a revision of a directory.
    """
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    check_local_path(path, "reward model", revision=revision)
    if tokenizer is None:
        tokenizer = load_tokenizer(path, revision, field="reward model", trust_remote_code=trust_remote_code)
    subject = f"reward model {path!r} could not be loaded"
    config = read_config(path, revision, subject=subject, trust_remote_code=trust_remote_code)
    if any("ForSequenceClassification" in name for name in config.architectures or []):
        check_single_label(config, path)
    else:
        config.num_labels = 1  # not a classifier: let loading find which weights are missing
    # In the checkpoint's own dtype: casting the head down and up again would round its weights.
    model, info = read_model(
        AutoModelForSequenceClassification,
        path,
        revision,
        subject=subject,
        trust_remote_code=trust_remote_code,
        config=config,
        dtype="auto",
        ignore_mismatched_sizes=True,  # they are named below
    )
    random_keys = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if random_keys:
        raise ModelError(
            f"{path!r} does not hold {', '.join(random_keys)} of {type(model).__name__}: a random head "
            "(newly initialised weights) would score noise. Is it a reward model trained with num_labels=1?"
        )
    cast_body(model, dtype)
    return model.eval(), tokenizer


def check_single_label(config: Any, name: str) -> None:
    """Refuse a classifier whose logits are not one reward.

    Raises:
        ModelError: num_labels is not 1.
    """
    if config.num_labels != 1:
        raise ModelError(
            f"reward model {name!r} has num_labels={config.num_labels}; a reward is one number, so "
            "num_labels must be 1. To use one class of a classifier, write a function that picks its logit"
        )


def cast_body(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights beneath the head. Buffers stay: bfloat16 rotary frequencies would blur positions."""
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    heads = {id(parameter) for head in heads_of(model) for parameter in head.parameters()}
    for name, parameter in model.named_parameters():
        kept = id(parameter) in heads or any(part in name.split(".") for part in strict)
        if parameter.is_floating_point() and not kept:
            parameter.data = parameter.data.to(dtype)


def keep_head_in_float32(model: nn.Module) -> None:
    """Upcast the head and what flows into it, so that a bfloat16 body still gives float32 logits."""
    for head in heads_of(model):
        head.float()
        head.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The modules with weights between the body and the logits."""
    children = dict(model.named_children())
    body = getattr(model, "base_model_prefix", "")
    names = [name for name in children if name != body] if body in children else list(HEAD_NAMES)
    return [
        children[name]
        for name in names
        if name in children and any(True for _ in children[name].parameters())
    ]


def _inputs_to_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(map(_to_float32, args)), {name: _to_float32(value) for name, value in kwargs.items()}


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
