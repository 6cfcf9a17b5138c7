"""How far two rewards order a group's completions differently."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_PAIRS_AT_ONCE = 2**22


def of_two_lists(first: pa.Array, second: pa.Array) -> pa.Array:
    """For each group: the share of pairs of completions that two rewards order oppositely, for DuckDB.

    Of the pairs that both rewards tell apart; null where there is none, or where a group lacks one of the rewards.
    """
    first, second = (
        each.combine_chunks() if isinstance(each, pa.ChunkedArray) else each for each in (first, second)
    )
    sizes, others = (pc.fill_null(pc.list_value_length(each), 0).to_numpy() for each in (first, second))
    results = np.full(len(first), np.nan)
    for size in {*sizes[(sizes == others) & (sizes > 1)].tolist()}:
        places = np.flatnonzero((sizes == size) & (others == size))
        pair = [_rectangle(each, places, size) for each in (first, second)]
        step = max(1, _PAIRS_AT_ONCE // size**2)
        for start in range(0, len(places), step):
            results[places[start : start + step]] = _shares(*(each[start : start + step] for each in pair))
    return pa.array(results, from_pandas=True)  # NaN becomes null


def _rectangle(lists: pa.Array, places: np.ndarray, size: int) -> np.ndarray:
    """The lists at these places, all of one size, as [b, size]; NaN for a null."""
    values = pc.list_flatten(lists.take(pa.array(places)))
    return values.to_numpy(zero_copy_only=False).astype(float).reshape(-1, size)


def _shares(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[b, m] and [b, m] to [b]; NaN where no pair is told apart by both."""
    # A null (NaN) compares as neither more nor less, so its pairs are told apart by none.
    ordered = [
        (values[:, :, None] > values[:, None, :]).astype(np.int8)
        - (values[:, :, None] < values[:, None, :]).astype(np.int8)
        for values in (first, second)
    ]
    product = ordered[0] * ordered[1]
    told = np.count_nonzero(product, axis=(1, 2))
    opposite = np.count_nonzero(product < 0, axis=(1, 2))
    return np.divide(opposite, told, out=np.full(len(first), np.nan), where=told > 0)
