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
    groups: Any = column.combine_chunks()
    inner: Any = pc.list_flatten(groups) if _is_lists(groups) else groups
    ids: Any = pc.list_flatten(inner) if _is_lists(inner) else inner
    if ids is inner or inner is groups or not pa.types.is_integer(ids.type):
        return column.to_pylist()
    if groups.null_count or inner.null_count or ids.null_count:
        return column.to_pylist()
    numbers = ids.to_numpy()
    least, most = (numbers.min(), int(numbers.max())) if len(numbers) else (0, 0)
    if least < 0 or most >= _MOST:
        return column.to_pylist()
    objects = _objects(max(_USUAL, 1 << most.bit_length()))
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
