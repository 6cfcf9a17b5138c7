"""What a model's forward pass calls transformers' cache of attention's keys and values."""

import inspect
from typing import get_args

from torch import nn
from transformers import Cache


def cache_name(model: type[nn.Module]) -> str | None:
    """`past_key_values`, or `cache` in newer transformers; None where the pass takes neither by name.

    Needs no weights. Many models take any name without a word, so a pass that names none would ignore a cache.
    """
    parameters = inspect.signature(model.forward).parameters
    # Some old models have a dictionary of their own by the name of cache.
    if "cache" in parameters and Cache in get_args(parameters["cache"].annotation):
        return "cache"
    return "past_key_values" if "past_key_values" in parameters else None
