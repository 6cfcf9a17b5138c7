"""A dataset's further columns on disk: as Parquet's own types where those give every value back, else as JSON."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nonpareil.errors import DataError
from nonpareil.records import PromptText, has_further
from nonpareil.terminal import printable

REWARD_PREFIX = "rewards/"
ESCAPE = "columns/"
"""Put before a dataset column whose name a group's own column has; taken off when reading."""
JSON_PREFIX = "json/"
"""Put before a column that is kept as JSON text, one value per row."""
OWN_NAMES = (
    "prompt_id",
    "prompt",
    "prompt_token_ids",
    "completions",
    "completion_token_ids",
    "finish_reasons",
    "logprobs",
    "rewards",
)
"""Of the columns that a group itself has."""
OPENING = "prompt/opening"
"""Of conversations, `Prompt.opening`; files of earlier versions lack it. No dataset's column has such a name."""


FURTHER = "prompt/further"
"""Of conversations whose messages have more than role and content: the rest of each as JSON, null without."""


def message_types(prompts: Iterable[PromptText]) -> dict[str, pa.DataType | None]:
    """The column `FURTHER`, where any of all prompts needs it, beside `column_types`."""
    needed = any(not isinstance(prompt, str) and has_further(prompt) for prompt in prompts)
    return {FURTHER: pa.list_(pa.string())} if needed else {}


def further_of(prompt: PromptText) -> list[str | None]:
    """What `FURTHER` holds of a conversation."""
    rest = [{k: v for k, v in message.items() if k not in ("role", "content")} for message in prompt]  # type: ignore[union-attr]
    return [_json(each) if each else None for each in rest]


def whole_prompt(prompt: PromptText, further: list[str | None] | None) -> PromptText:
    """A conversation with what `FURTHER` holds of it."""
    if further is None or isinstance(prompt, str):
        return prompt
    return [m if rest is None else {**m, **json.loads(rest)} for m, rest in zip(prompt, further, strict=True)]


def column_types(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.DataType | None]:
    """The Arrow type of every dataset column over all rows, so that all shards of a run have one schema.

    Each column is written to Parquet in memory and read back. None stands for JSON text: Parquet cannot hold
    the values (objects without keys), or would give back others (objects with different keys, whole and
    fractional numbers in one column), and a reward must read what the dataset has.

    Raises:
        DataError: a column whose values have no common type, or that neither form gives back, naming it.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _type_of(name, [row.get(name) for row in rows]) for name in names}


def stored_column(name: str, values: Sequence[Any], kind: pa.DataType | None) -> tuple[str, pa.Array]:
    """A dataset column's name and values on disk; `kind` as `column_types` gives it."""
    if kind is None:
        return JSON_PREFIX + name, pa.array([None if v is None else _json(v) for v in values], pa.string())
    taken = name in (*OWN_NAMES, OPENING, FURTHER) or name.startswith((REWARD_PREFIX, ESCAPE, JSON_PREFIX))
    return ESCAPE + name if taken else name, pa.array(values, kind)


def from_stored(name: str, values: list[Any]) -> tuple[str, list[Any]]:
    """The dataset's own name and values of a column on disk."""
    if name.startswith(JSON_PREFIX):
        return name.removeprefix(JSON_PREFIX), [None if v is None else json.loads(v) for v in values]
    return name.removeprefix(ESCAPE), values


def _type_of(name: str, values: list[Any]) -> pa.DataType | None:
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise DataError(
            f"column {name!r} cannot be stored in Parquet: {printable(str(error))}; drop it, or give its "
            "values one type"
        ) from error
    native = _through_parquet(array)
    if native is not None and all(map(_same, values, native)):
        return array.type
    for row, value in enumerate(values):
        try:
            same = _same(value, json.loads(_json(value)))
        except (TypeError, ValueError):
            same = False
        if not same:
            raise DataError(
                f"column {name!r}, row {row} (the first is 0): {value!r:.60} would be read back as another value "
                "than it is; drop the column, or give its values one plain type"
            )
    return None


def _through_parquet(array: pa.Array) -> list[Any] | None:
    """The values as a shard gives them back; None where Parquet has no form for them."""
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.table({"values": array}), buffer)
        return pq.ParquetFile(buffer).read(use_threads=False)["values"].to_pylist()
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _same(value: Any, stored: Any) -> bool:
    """Whether a reward that reads `stored` reads what the dataset has, type and all; a list for a tuple is."""
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return isinstance(stored, list) and len(value) == len(stored) and all(map(_same, value, stored))
    if isinstance(value, Mapping):
        return (
            isinstance(stored, dict)
            and value.keys() == stored.keys()
            and all(_same(value[key], stored[key]) for key in value)
        )
    if isinstance(value, float) and value != value:
        return isinstance(stored, float) and stored != stored
    return isinstance(value, type(stored)) and bool(value == stored)
