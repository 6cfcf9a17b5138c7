"""What a model's forward pass calls transformers' cache of attention's keys and values."""

import inspect
import re
from typing import get_args

from torch import nn
from transformers import Cache


def cache_name(model: type[nn.Module]) -> str | None:
    """`past_key_values`, or `cache` in newer transformers; None where the pass takes neither by name.

    Needs no weights. Many models take any name without a word, so a pass that names none would ignore a cache.
    """
    parameters = inspect.signature(model.forward).parameters
    if "cache" in parameters:
        annotation = parameters["cache"].annotation
        names = re.findall(r"\w+", annotation) if isinstance(annotation, str) else get_args(annotation)
        # Some old models have a dictionary of their own by the name of cache.
        if Cache in names or Cache.__name__ in names:
            return "cache"
    return "past_key_values" if "past_key_values" in parameters else None
