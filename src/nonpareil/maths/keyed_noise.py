"""Random numbers that depend on a key and a place alone, never on what else is drawn beside them."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_STRIDE = np.uint64(0x9E3779B97F4A7C15)
"""From a key's numbers for one token to those for the next."""


def keys_after(keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Keys whose token 0 has the noise that token `steps[i]` of key i has: for rows that are not in step."""
    with np.errstate(over="ignore"):
        return keys + steps.astype(np.uint64) * _STRIDE


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit moves every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def gumbel_noise(keys: np.ndarray, step: int, count: int) -> Float[Tensor, "r n"]:
    """`count` standard Gumbel numbers a key, for its `step`-th token, from a counter-based generator.

    Without state there is nothing to save for a resume, and retiring a row moves no other row's numbers.
    """
    with np.errstate(over="ignore"):
        row = _mix(keys + np.uint64(step + 1) * _STRIDE)
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        bits = _mix(row[:, None] + counter[None])
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return torch.from_numpy(uniform).log_().neg_().log_().neg_().float()
