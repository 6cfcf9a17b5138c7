"""Lists of token ids out of Arrow, equal ids as one Python object: of many groups, most of their memory."""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_USUAL, _MOST = 2**18, 2**22
"""Sizes of vocabularies: of most, and what none reaches."""


def token_lists(column: pa.ChunkedArray) -> list[Any]:
    """What `to_pylist` gives of a column that has lists of ids a group; an id is one object wherever it stands."""
    groups = column.combine_chunks()
    inner = pc.list_flatten(groups) if _is_lists(groups) else None
    ids = pc.list_flatten(inner) if inner is not None and _is_lists(inner) else None
    if ids is None or not pa.types.is_integer(ids.type):
        return column.to_pylist()
    numbers = np.zeros(1, np.int64) if len(ids) == 0 or ids.null_count else ids.to_numpy()
    if (
        groups.null_count
        or inner.null_count
        or ids.null_count
        or not 0 <= numbers.min() <= numbers.max() < _MOST
    ):
        return column.to_pylist()
    objects = _objects(max(_USUAL, 1 << int(numbers.max()).bit_length()))
    return _divided(_divided(objects[numbers].tolist(), inner), groups)


@cache
def _objects(size: int) -> np.ndarray:
    """The numbers below a size, each as an object."""
    return np.arange(size).astype(object)


def _is_lists(array: pa.Array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type)


def _divided(values: list[Any], lists: pa.Array) -> list[list[Any]]:
    ends = [0, *np.cumsum(pc.list_value_length(lists).to_numpy()).tolist()]
    return [values[start:end] for start, end in pairwise(ends)]
