"""Objects that Python gives in the place of names, as options hold them: each behind a name of its own."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.in_memory import InMemory
from nonpareil.options.given import Defaults
from nonpareil.settings import Setting

_PROMPTS, _MIXTURE = ("dataset_name", "eval_dataset_name"), "datasets"


def as_option(name: str, setting: Setting | None, value: Any) -> Any:
    """A value as options hold it: paths as text, and what is no name behind one.

    Raises:
        ConfigError: an object where there can be none.
    """
    if isinstance(value, Path):
        return str(value)
    if setting is None or value is None:
        return value
    if setting.limits.names == "reward":
        if not setting.is_list:
            return _reward(value)
        listed = list(value) if isinstance(value, list | tuple) else [value]
        return [_reward(one) for one in listed]
    if name in _PROMPTS and not isinstance(value, str):
        return InMemory(f"{_rows_of(name, value)} in memory", value)
    if name == _MIXTURE and isinstance(value, list | tuple):
        return [_part(f"{name}[{place}]", one) for place, one in enumerate(value)]
    if hasattr(value, "state_dict") and hasattr(value, "config"):
        raise ConfigError(
            f"{name} is a {type(value).__name__} in memory, and a command reads a model from a folder or the hub; "
            "write it with save_pretrained(folder) and give the folder, or train it with DistillationTrainer"
        )
    if isinstance(value, list | tuple):
        return [str(one) if isinstance(one, Path) else one for one in value]
    return value


def _part(where: str, value: Any) -> Any:
    """One dataset of a mixture: rows alone, or under `path`, behind a name.

    Raises:
        ConfigError: an object that has no rows.
    """
    if isinstance(value, Mapping):
        return {**value, "path": _part(f"{where}.path", value["path"])} if "path" in value else value
    if value is None or isinstance(value, str | Path):
        return value if value is None else str(value)
    return InMemory(f"{_rows_of(where, value)} in memory", value)


def _reward(value: Any) -> Any:
    """A name as it is; a function, a `Reward` or a model behind its name."""
    if isinstance(value, str):
        return value
    if isinstance(value, Path):
        return str(value)
    target = value
    while isinstance(target, functools.partial):
        target = target.func
    said = getattr(target, "name", None) or getattr(target, "__name__", None)
    return InMemory(str(said or type(target).__name__).replace("/", "_").strip("<>"), value)


def _rows_of(name: str, value: Any) -> str:
    """How rows are called.

    Raises:
        ConfigError: what has no rows that can be counted.
    """
    if isinstance(value, Mapping) or not _can_be_counted(value):
        raise ConfigError(
            f"{name} is a {type(value).__name__}; give a file, folder or hub dataset by its name, or rows: a list "
            'of texts, a list of {"prompt": ...}, or a datasets.Dataset (one split of it)'
        )
    return f"{len(value)} rows"


def _can_be_counted(value: Any) -> bool:
    """Whether it has rows by their numbers; a table of pandas has columns by their names."""
    if hasattr(value, "iloc") or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        return False
    try:
        return not len(value) or value[0] is not value
    except (KeyError, TypeError):
        return False


def defaults_by_name(defaults: Defaults) -> Defaults:
    """A command's own defaults, to which a method is a name; a user's own has those of its class."""

    def found(given: Mapping[str, Any]) -> Mapping[str, Any]:
        method = given.get("method")
        if method is None or isinstance(method, str):
            return defaults(given)
        from nonpareil.methods import METHODS

        name = next((name for name, cls in METHODS.items() if cls is type(method)), "jbond")
        own = getattr(type(method), "training_defaults", {})
        return {**defaults({**given, "method": name}), **own}

    return found
