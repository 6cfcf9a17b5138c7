"""What a training would do and need, worked out without reading a weight."""

from typing import TYPE_CHECKING, Any

from nonpareil.errors import ModelError

if TYPE_CHECKING:
    from nonpareil.methods.base import Method
    from nonpareil.training.config import DistillationConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def memory_estimate(
    name_or_path: str, revision: str | None, config: "DistillationConfig", method: "Method"
) -> dict[str, Any]:
    """The model's class, its parameters, and the bytes that training holds for good.

    Weights, gradients and AdamW's two moments in float32, the anchor in float32 where there is one, and the
    working copy that draws in the compute dtype. Activations and the key cache come on top; they follow
    `max_tokens_per_batch`.

    Raises:
        ModelError: a config that cannot be read, or is of no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(name_or_path, revision=revision)
            )
    except (OSError, ValueError) as error:
        raise ModelError(f"model_name_or_path={name_or_path!r} cannot be trained: {error}") from error
    parameters = sum(p.numel() for p in model.parameters())
    draws = method.policy_draws + method.anchor_draws > 0
    compute = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    held = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "adam": 8 * parameters,
        "anchor": 4 * parameters * draws,
        "working_copy": BYTES[compute] * parameters * draws,
    }
    return {
        "model_class": type(model).__name__,
        "parameters": parameters,
        "memory_bytes": {**held, "total": sum(held.values())},
    }
