"""Load what a user names as `pkg.mod.name` or `path/to/file.py:name`: a reward function, a class of a method."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.setting_types import nearest
from nonpareil.user_code.contained import CallFailed, contained
from nonpareil.user_code.kept_state import WHILE_IMPORTING


def is_function_path(spec: str) -> bool:
    """Whether a string means a function (`file.py:fn`, `pkg.mod.fn`, `pkg.mod:fn`), perhaps badly, and no model."""
    parts = spec.split(".")
    is_dotted = len(parts) > 1 and all(part.isidentifier() for part in parts)
    return ":" in spec or spec.endswith(".py") or is_dotted


def load_function(spec: str) -> Callable[..., Any]:
    """The function named by `pkg.mod.fn` (or `pkg.mod:fn`) or `path/to/file.py:fn`.

    Modules are also looked for in the current directory, and a file's imports also in its own.

    Raises:
        ConfigError: no such file, module or function, its import fails, or it cannot be called.
    """
    file, colon, attribute = spec.rpartition(":")
    names = spec.replace(":", ".").split(".")
    if colon and file.endswith(".py") and attribute.isidentifier():
        module = load_file(Path(file).expanduser())
    elif len(names) > 1 and names[-1] != "py" and all(name.isidentifier() for name in names):
        *package, attribute = names
        module = _import(".".join(package), spec)
    else:
        raise ConfigError(f"{spec!r} names no function; give {_meant(spec)}")
    function = getattr(module, attribute, None)
    if function is None:
        callables = [
            name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
        ]
        raise ConfigError(
            f"{spec!r}: there is no {attribute!r} in {module.__file__}{nearest(attribute, callables, quoted=True)}"
        )
    if not callable(function):
        raise ConfigError(f"{spec!r} is a {type(function).__name__}, which cannot be called")
    return function


def load_file(path: Path, module_name: str | None = None) -> ModuleType:
    """Import a Python file once a version, under a name that pickle can find it by.

    Raises:
        ConfigError: there is no such file, or its import fails.
    """
    if not path.is_file():
        near = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"no such file: {path}{nearest(str(path), near, quoted=True)}")
    path = path.resolve()
    if module_name is None:
        version = f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}"
        module_name = f"nonpareil_reward_{path.stem}_{hashlib.sha256(version.encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    _look_in(str(path.parent))
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None  # it ends in .py
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        with contained(WHILE_IMPORTING):
            module_spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(module_name, None)
        if isinstance(error, CallFailed):
            raise _import_failed(str(path), error) from error
        raise
    return module


def _import(module_name: str, spec: str) -> ModuleType:
    _look_in(os.getcwd())  # a console script's path lacks it; `python -m` has it
    try:
        with contained(WHILE_IMPORTING):
            return importlib.import_module(module_name)
    except CallFailed as failure:
        missing = failure.__cause__.name if isinstance(failure.__cause__, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            raise ConfigError(
                f"{spec!r}: there is no module {missing!r}; give pkg.mod.fn of an installed package or of "
                "the current directory, or path/to/file.py:fn"
            ) from failure
        raise _import_failed(module_name, failure) from failure


def _import_failed(what: str, failure: CallFailed) -> ConfigError:
    place = f" ({failure.place})" if failure.place else ""
    return ConfigError(f"importing {what} failed: {failure.reason}{place}")


def _look_in(directory: str) -> None:
    if directory not in sys.path:
        sys.path.append(directory)


def _meant(spec: str) -> str:
    """How a function is named; in the file that is named, where one is."""
    file = spec.partition(":")[0]
    return (
        f"{file}:fn, fn being a function in it"
        if file.endswith(".py")
        else "pkg.mod.fn or path/to/file.py:fn"
    )
