"""Whether a training fits its device, by the estimate of its memory, and what makes it fit."""

from collections.abc import Mapping

_PASSING = ("activations", "logits", "cache")
"""What comes and goes in a step."""


def memory_warning(
    needed: Mapping[str, int | None], checkpointed: Mapping[str, int | None], device: int | None
) -> str | None:
    """What to say of a training that may need more than its device has; None where it fits, or nobody knows.

    Args:
        needed: bytes by what they are for, an estimate of the most; `total` is left out.
        checkpointed: the same with gradient checkpointing; equal where that is on already.
        device: bytes that it has; None where it does not say.
    """
    if device is None or any(needed.get(name) is None for name in _PASSING):
        return None
    most, less = _total(needed), _total(checkpointed)
    if most <= device:
        return None
    held = most - sum(needed[name] or 0 for name in _PASSING)
    said = f"memory: up to {_gib(most)} GiB are needed, by an estimate, and this device has {_gib(device)}"
    if held > device:
        return (
            f"{said}; {_gib(held)} are held throughout: give use_peft=true (an adapter alone is trained), "
            "shard_weights=true over several processes, or take a smaller model"
        )
    if less <= device:
        return f"{said}; with gradient_checkpointing=true it is {_gib(less)}, in more time"
    both = "gradient_checkpointing=true and a lower" if less < most else "a lower"
    return f"{said}; give {both} max_tokens_per_batch, which activations and cache follow"


def _total(parts: Mapping[str, int | None]) -> int:
    return sum(value or 0 for name, value in parts.items() if name != "total")


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"
