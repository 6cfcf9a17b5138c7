"""Files that are whole or absent, and JSON without NaN."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError

LOCK = ".lock"


def jsonable(value: Any) -> Any:
    """Dataclasses, named tuples, lists and mappings as plain JSON values; NaN and infinities become None.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: jsonable(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON: {value!r}")


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file in one step, so that a reader, a crash or a power cut never leaves half of it.

    A kill can leave `.<name>.<pid>.tmp` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # else the name may reach the disk before the content
        os.replace(temporary, path)
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


@contextmanager
def held(folder: Path, other: str) -> Iterator[int]:
    """Hold a folder against others through its `.lock`; gives the lock's file descriptor.

    The kernel lets go of it when every process that holds it has ended, however it ended.

    Raises:
        ConfigError: `other` (in words: who it may be) holds it.
    """
    with (folder / LOCK).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"output_dir={str(folder)!r} is being written to by {other}; wait for it, or give "
                "another output_dir"
            ) from error
        yield lock.fileno()
