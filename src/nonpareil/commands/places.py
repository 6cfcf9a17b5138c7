"""Where a command may write: never over what it reads; and where nothing may be deleted."""

import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.in_memory import InMemory
from nonpareil.settings import settings_of


def inputs_of(*options: Any) -> list[tuple[str, Path]]:
    """What is read by the settings in these objects, as (option, path) of all that is on this machine."""
    found: list[tuple[str, Path]] = []
    for each in options:
        found += inputs_among(type(each), {name: getattr(each, name) for name in settings_of(type(each))})
        found += (("config_file", path) for path in _local(getattr(each, "config_file", None)))
    return found


def inputs_among(cls: type, settings: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """The same of a class's settings by name; what is none of them is left out."""
    known = settings_of(cls)
    return [
        (name, path)
        for name, value in settings.items()
        if name in known and (kind := known[name].limits.names) is not None
        for one in (value if isinstance(value, list | tuple) else [value])
        for path in (_local(one) if kind == "input" else _of_spec(one, of_files_only=kind == "code"))
    ]


def check_output(
    option: str, path: str | Path, inputs: Iterable[tuple[str, Path]], *, deletes: bool = False
) -> None:
    """Refuse an output that is an input and, where it `deletes`, one that holds an input or lies in one.

    What deletes may not be or hold the working directory or a home either. Links are seen through.

    Raises:
        ConfigError: naming both.
    """
    if not str(path):
        raise ConfigError(f"{option}={str(path)!r} is empty; name a directory")
    output, what = _around(Path(path)), f"{option}={str(path)!r}"
    for name, source in inputs:
        read = _around(source)
        if output[0] == read[0]:
            raise ConfigError(f"{what} is what {name} names; it would be written over, so name another place")
        if deletes and (read[0] in output or output[0] in read):
            relation = "lies in" if read[0] in output else "holds"
            raise ConfigError(
                f"{what} {relation} {name}={str(source)!r}, and overwrite would delete there; name another place"
            )
    if deletes:
        for name, place in (("the working directory", Path.cwd()), *_homes()):
            if output[0] is not None and output[0] in _around(place):
                raise ConfigError(
                    f"{what} is or holds {name}, and overwrite would delete there; name another place"
                )


def _local(value: Any) -> Iterator[Path]:
    """The path that an option names, and the base model's where it is an adapter; those of a mixture's dataset."""
    if isinstance(value, Mapping):
        files = value.get("data_files")
        listed = (
            list(files.values())
            if isinstance(files, Mapping)
            else files
            if isinstance(files, list)
            else [files]
        )
        for one in (value.get("path"), value.get("data_dir"), *listed):
            yield from _local(one)
        return
    if isinstance(value, InMemory) or not isinstance(value, str | Path) or not str(value):
        return
    path = Path(value).expanduser()
    if not os.path.exists(path):
        return
    yield path
    try:
        base = json.loads((path / "adapter_config.json").read_bytes())["base_model_name_or_path"]
        base = Path(base).expanduser()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if os.path.exists(base):
        yield base


def _of_spec(spec: Any, *, of_files_only: bool) -> Iterator[Path]:
    """Of a folder, a file with `:name` behind it, a server with `#folder` behind it, or of an object's class."""
    if isinstance(spec, InMemory):
        return
    if not isinstance(spec, str):
        with suppress(TypeError, OSError):  # nothing was given, or the class was made at a prompt
            yield from _local(inspect.getfile(type(spec)))
        return
    file, _, _ = spec.rpartition(":")
    if file.endswith(".py"):
        yield from _local(file)
    elif not of_files_only:
        yield from _local(spec)
        yield from _local(spec.partition("#")[2])


def _homes() -> Iterator[tuple[str, Path]]:
    import pwd

    homes = {os.path.expanduser("~"), *(user.pw_dir for user in pwd.getpwall())}
    return ((f"a home ({home})", Path(home)) for home in sorted(homes) if os.path.isdir(home))


def _around(path: Path) -> list[tuple[int, int] | None]:
    """Device and inode of what a path leads to, then of the folders around it; None where there is nothing."""
    try:
        real = Path(os.path.realpath(path))
    except ValueError:  # a null byte
        return [None]
    return [_inode(each) for each in (real, *real.parents)]


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
