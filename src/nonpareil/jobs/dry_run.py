"""What a training would do and need, worked out without reading a weight."""

from typing import TYPE_CHECKING, Any

from nonpareil.errors import ModelError

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OPTIMIZER_BYTES = {"sgd": 0, "rmsprop": 4, "adagrad": 4, "adafactor": 0}
"""Of state a trained parameter; what is not named here is taken for Adam's two moments in float32."""


def memory_estimate(
    name_or_path: str, revision: str | None, config: "DistillationConfig", method: "Method"
) -> dict[str, Any]:
    """The model's class, its parameters, and the bytes that training holds for good.

    In float32: weights, gradients and optimizer state of what is trained, and the anchor where there is one; in the
    compute dtype the working copy that draws. Activations and the key cache come on top; they follow
    `max_tokens_per_batch`.

    Raises:
        ModelError: a config that cannot be read, or is of no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nonpareil.models.loading import freeze

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(name_or_path, revision=revision)
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"model_name_or_path={name_or_path!r} cannot be trained: {error}") from error
    freeze(model, config.frozen_parameters or [])
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    draws = method.policy_draws + method.anchor_draws > 0
    compute = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    held = {
        "weights": 4 * parameters,
        "gradients": 4 * trained,
        "optimizer": OPTIMIZER_BYTES.get(str(config.optim), 8) * trained,
        "anchor": 4 * parameters * draws,
        "working_copy": BYTES[compute] * parameters * draws,
    }
    return {
        "model_class": type(model).__name__,
        "parameters": parameters,
        "trained_parameters": trained,
        "memory_bytes": {**held, "total": sum(held.values())},
    }
