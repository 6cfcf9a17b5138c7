"""How a training fits its devices; what it learns does not depend on these, but for rounding."""

from dataclasses import dataclass
from typing import ClassVar

from nonpareil.settings import option


@dataclass
class HardwareSettings:
    """The compute type, the memory of a pass, and how the weights are held."""

    HEADING: ClassVar = "Hardware"

    bf16: bool | None = option(None, "Compute in bfloat16. Default: where this machine gains from it.")
    max_tokens_per_batch: int = option(
        16384, "Tokens, padding included, of one forward pass; bounds memory.", at_least=1
    )
    gradient_checkpointing: bool = option(
        False,
        "Compute activations anew in the backward pass: more time, and of activations those of one "
        "layer. For passes of max_tokens_per_batch that do not fit (TRL's GRPO has it on).",
    )
    shard_weights: bool = option(
        False,
        "Split policy, anchor and optimizer state over the processes, by FSDP2. Accelerate's config "
        "may ask for ZeRO-3 in its place.",
    )
