"""Token ids out of Arrow: what Arrow itself gives, each id one object."""

import numpy as np
import pyarrow as pa
import pytest

from nonpareil.rollouts.token_lists import token_lists

KIND = pa.list_(pa.list_(pa.int32()))


@pytest.mark.parametrize(
    "groups",
    [
        [[[70_000, 1, 70_000], [], [2]], [], [[5]]],
        [[], [[]]],
        [],
        [[[70_000], None], None, [[1, None]]],
        [[[-1, 5]], [[2**30]]],
    ],
)
def test_lists_are_those_of_arrow(groups):
    for kind in (KIND, pa.large_list(pa.large_list(pa.int64()))):
        column = pa.chunked_array([pa.array(part, kind) for part in (groups, groups[:1])])
        assert token_lists(column) == column.to_pylist() == groups + groups[:1]
        part = column.slice(1)  # whose lists begin behind the first value
        assert token_lists(part) == part.to_pylist()
    assert token_lists(pa.chunked_array([pa.array([], pa.null())])) == []
    assert token_lists(pa.chunked_array([pa.array([[1], []], pa.list_(pa.int32()))])) == [[1], []]


def test_equal_ids_are_one_object_in_all_shards():
    rng = np.random.default_rng(0)
    shards = [rng.integers(0, 300_000, (4, 3, 50)).tolist() for _ in range(2)]
    read = [token_lists(pa.chunked_array([pa.array(one, KIND)])) for one in shards]
    assert read == shards
    assert all(type(i) is int for one in read for group in one for ids in group for i in ids)
    again = token_lists(pa.chunked_array([pa.array(shards[0], KIND)]))
    assert again[0][0][0] is read[0][0][0][0]
