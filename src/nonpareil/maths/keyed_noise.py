"""Random numbers that depend on a key and a place alone, never on what else is drawn beside them."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit moves every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def gumbel_noise(keys: np.ndarray, step: int | np.ndarray, count: int) -> Float[Tensor, "r n"]:
    """`count` standard Gumbel numbers a key, for its `step`-th token, from a counter-based generator.

    `step` is one for all keys, or of each its own. Without state there is nothing to save for a resume, and
    retiring a row moves no other row's numbers.
    """
    with np.errstate(over="ignore"):
        row = _mix(keys + (np.asarray(step, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        bits = _mix(row[:, None] + counter[None])
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return torch.from_numpy(uniform).log_().neg_().log_().neg_().float()
