"""The one dtype that an evaluation's metrics hold for: both models draw, are scored and are compared in it."""

from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.terminal import tell

if TYPE_CHECKING:
    import torch

    from nonpareil.commands.policies.local import LocalPolicy
    from nonpareil.training.config import DistillationConfig


def products_dtype(dtype: str, kl_dtype: str) -> "torch.dtype":
    """What the KL's passes multiply in: `kl_dtype`, where "auto" is the dtype that draws.

    Weights are those of `dtype` in either case, so it may be that dtype or float32.

    Raises:
        ConfigError: one that would round the weights once more, and so give the KL of other models.
    """
    import torch

    from nonpareil.models.devices import best_device, dtype_name, resolve_dtype

    drawn_in = resolve_dtype(dtype, best_device())
    products = drawn_in if kl_dtype == "auto" else resolve_dtype(kl_dtype, best_device())
    if products not in (drawn_in, torch.float32):
        raise ConfigError(
            f"kl_dtype={kl_dtype!r}: completions are drawn from {dtype_name(drawn_in)} weights (dtype={dtype!r}), "
            "and rounding those once more would give the KL of other models; give auto (the dtype that draws) or "
            "float32, or another dtype"
        )
    return products


def training_dtype(config: "DistillationConfig", kl_dtype: str) -> str:
    """What a policy draws in while it is trained, and so is measured in afterwards.

    Raises:
        ConfigError: as `products_dtype`; before any training.
    """
    import torch

    from nonpareil.models.devices import dtype_name

    computes = dtype_name(config.compute_dtype(torch.float32))
    products_dtype(computes, kl_dtype)
    return computes


def dtypes_of(policy: "LocalPolicy", reference: "LocalPolicy", products: "torch.dtype") -> dict[str, Any]:
    """What the report says of dtypes; a policy that is stored in a wider one is told of."""
    from nonpareil.models.devices import dtype_name

    measured = policy.resolved_dtype
    stored = {"policy": policy.stored_dtype, "reference": reference.stored_dtype}
    names = {side: dtype and dtype_name(dtype) for side, dtype in stored.items()}
    rounded = [
        side for side, dtype in stored.items() if dtype is not None and dtype.itemsize > measured.itemsize
    ]
    for side in rounded[:1]:  # the remedy is the same for both
        tell(
            f"the {' and the '.join(rounded)}: stored in {names[side]}, measured in {dtype_name(measured)}. Draws, "
            "rewards and KL are all of the rounded weights, in which a small training may vanish; "
            f"`nonpareil evaluate --dtype {names[side]}` measures them as stored"
        )
    return {
        "measured": dtype_name(measured),
        "KL products": dtype_name(products),
        **{f"{side} stored": name for side, name in names.items()},
    }
