"""Files that are whole or absent, and JSON without NaN."""

import json
import math
import os
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nonpareil import folders


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


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file in one step, so that a reader, a crash or a power cut never leaves half of it.

    In a folder that `folders.writing` holds it is listed as ours. A kill can leave `.<name>.<pid>.tmp` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as stream:  # never through a link of that name
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # else the name may reach the disk before the content
        folders.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


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
