"""What a reward reads of a dataset's columns is what the dataset has, whatever Parquet can hold."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nonpareil.errors import DataError
from nonpareil.records import ScoreRequest
from nonpareil.rewards import FunctionReward
from nonpareil.rollouts import read_shard, tokenize_prompts, write_shard
from nonpareil.rollouts.columns import column_types
from tests.rollouts.conftest import combined, group_of, make_tokenizer, never, roll

EAST = timezone(timedelta(hours=5, minutes=30))
AS_JSON: dict[str, list[Any]] = {
    "objects without keys": [{}, {}],
    "objects without keys, nested": [{"a": {}}, {"a": {}}],
    "in lists": [[{}], []],
    "with other keys": [{"a": 1}, {"a": 2, "b": None}],
    "whole and fractional": [1, 2.5],
    "whole and fractional, nested": [{"a": [1]}, {"a": [0.5]}],
    "and nothing": [{}, None],
}
NATIVE: dict[str, list[Any]] = {
    "numbers": [1, None],
    "not a number": [float("nan"), float("inf")],
    "nothing": [None, None],
    "lists of nothing": [[None], []],
    "texts": ["a\0b\u2028", "\U0001f600"],
    "bytes": [b"\x00\xff", b""],
    "truth": [True, False],
    "moments": [datetime(2026, 11, 26, 8, 2, 1, 7), datetime(1, 1, 1)],
    "moments with a zone": [datetime(2026, 11, 26, tzinfo=UTC), datetime(2026, 11, 26, tzinfo=EAST)],
    "days": [date(2026, 11, 26), None],
    "durations": [timedelta(seconds=1.5), timedelta(days=-3)],
    "decimals": [Decimal("1.5"), Decimal("-22.125")],
    "large": [2**63 - 1, -(2**63)],
    "objects": [{"a": [{"b": 1}]}, {"a": []}],
    "arrays": [np.array([1, 2]), np.array([3])],
}


@pytest.mark.parametrize("case", AS_JSON)
def test_what_parquet_would_change_is_kept_as_json(tmp_path, case):
    values = AS_JSON[case]
    path = stored(tmp_path, values)
    assert exact(values, [group.columns["c"] for group in read_shard(path)])
    assert "json/c" in pq.read_schema(path).names
    pq.read_table(path).to_pandas()


@pytest.mark.parametrize("case", NATIVE)
def test_what_parquet_gives_back_has_its_type(tmp_path, case):
    values = NATIVE[case]
    path = stored(tmp_path, values)
    read = [group.columns["c"] for group in read_shard(path)]
    assert exact([v.tolist() if isinstance(v, np.ndarray) else v for v in values], read)
    assert "c" in pq.read_schema(path).names


def stored(tmp_path: Path, values: list[Any]) -> Path:
    groups = [group_of([1.0], prompt_id=f"p-{i}", c=value) for i, value in enumerate(values)]
    return write_shard(tmp_path / "a.parquet", groups)


def exact(values: Any, read: Any) -> bool:
    """Equal with their types: 1 is not 1.0."""
    if isinstance(values, list):
        return len(values) == len(read) and all(map(exact, values, read))
    if isinstance(values, dict):
        return values.keys() == read.keys() and all(exact(values[key], read[key]) for key in values)
    return type(values) is type(read) and (values == read or (values != values and read != read))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "one"], "column 'c' cannot be stored in Parquet"),
        ([2**63], "column 'c' cannot be stored in Parquet"),
        ([1, 2**70], "column 'c' cannot be stored in Parquet"),
        (["\ud83d"], r"column 'c' (cannot be stored in Parquet|holds .* half of a character)"),
        ([object()], "column 'c' cannot be stored in Parquet"),
        (
            [{"a": b"x"}, {"b": b"y"}],
            r"column 'c', row 0 \(the first is 0\): \{'a': b'x'\} would be read back as",
        ),
        ([0.5, Decimal("2"), {1}], "column 'c'"),
    ],
)
def test_what_cannot_be_given_back_is_refused_before_anything_is_drawn(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        column_types([{"c": value} for value in values])
    rows = [{"prompt": "the film", "c": value} for value in values]
    with pytest.raises(DataError, match=message):
        roll(tmp_path / "out", prompts=tokenize_prompts(rows, make_tokenizer()), engine=never)
    assert not (tmp_path / "out").exists()


def test_columns_named_as_they_would_be_stored_come_back(tmp_path):
    group = group_of([1.0])
    group.columns = {"json/x": 1, "x": {}, "prompt_id": {}, "columns/json/x": "a", "rewards": {"a": {}}}
    assert read_shard(write_shard(tmp_path / "a.parquet", [group])) == [group]


def test_a_reward_reads_the_dataset_s_values_at_first_and_when_scored_again(tmp_path):
    answers = [1, 2.5, 3, 4, 5, 6, 7, 8]
    rows = [{"prompt": f"the film {i}", "answer": a, "info": {}} for i, a in enumerate(answers)]
    prompts = tokenize_prompts(rows, make_tokenizer())
    seen: list[str] = []

    def remembers(completions: list[str], answer: list[Any], info: list[Any], **columns: Any) -> list[float]:
        seen.extend(f"{a}{i}" for a, i in zip(answer, info, strict=True))
        return [float(len(text)) for text in completions]

    def again(completions: list[str], **columns: Any) -> list[float]:
        return remembers(completions, **columns)

    roll(tmp_path / "out", prompts=prompts, reward=combined(remembers))
    roll(tmp_path / "out", prompts=prompts, reward=combined(again), engine=never)
    in_training = [f"{a}{{}}" for a in answers for _ in range(4)]
    assert seen == in_training * 2
    request = ScoreRequest.of([group_of([1.0, 2.0], answer=1, info={})])
    FunctionReward(remembers).score(request)
    assert seen[-1] == "1{}"
