"""Files that are whole or absent, and JSON without NaN."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints

from nonpareil import folders
from nonpareil.errors import DataError


def one_dataset(path: str | Path) -> str | None:
    """What holds a dataset without splits, in words: a file, or a folder of `datasets.Dataset.save_to_disk`.

    None of any other place or name.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return "one file"
    saved = all((place / name).is_file() for name in ("state.json", "dataset_info.json"))
    return "one saved dataset" if saved else None


def jsonable(value: Any, *, keep_infinities: bool = False) -> Any:
    """Dataclasses, named tuples, lists and mappings as plain JSON values; NaN and infinities become None.

    `keep_infinities`: as the texts "Infinity" and "-Infinity", which `float` reads, since JSON has no such numbers.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    within = partial(jsonable, keep_infinities=keep_infinities)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: within(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return within(value._asdict())
    if isinstance(value, dict):
        return {str(key): within(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [within(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        if keep_infinities and math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON: {value!r}")


def from_jsonable(hint: Any, value: Any, where: str = "") -> Any:
    """What `jsonable` made JSON of, by its annotation: dataclasses, tuples and dicts of them; of a null float NaN.

    Raises:
        DataError: a field of a dataclass that is not there, by its dotted name (`where` before it).
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [kind for kind in arguments if kind is not NoneType]
        return None if value is None else from_jsonable(kinds[0], value, where)
    if origin is tuple:
        return tuple(from_jsonable(arguments[0], item, where) for item in value)
    if origin is dict:
        return {key: from_jsonable(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        hints, read = get_type_hints(hint), {}
        for item in fields(hint):
            if item.name in value:
                read[item.name] = from_jsonable(hints[item.name], value[item.name], f"{where}.{item.name}")
            elif item.default is MISSING:
                raise DataError(f"{where}.{item.name} is missing")
        return hint(**read)
    if hint is float:
        return math.nan if value is None else float(value)
    return value


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file in one step; see `whole_file`."""
    with whole_file(path) as stream:
        stream.write(content)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name at the end: no reader, crash or power cut sees half of it.

    An error in the block leaves what was there before. In a folder that `folders.writing` holds the file is listed
    as ours. A kill can leave `.<name>.<pid>.tmp` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # never through a link of that name
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # else the name may reach the disk before the content
        folders.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, NaN as null, in one step; letters as they are, what acts or hides escaped."""
    text = _escaped(json.dumps(jsonable(value), allow_nan=False, ensure_ascii=False, indent=2))
    return write_bytes(path, (text + "\n").encode())


def _escaped(text: str) -> str:
    """JSON's escapes for what no eye sees; a lone surrogate has no other form in a file."""
    lines = text.split("\n")
    return "\n".join(
        line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
        for line in lines
    )
