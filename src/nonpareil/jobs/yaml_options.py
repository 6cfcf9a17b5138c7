"""YAML into option dataclasses, with the refusals that flags get."""

import argparse
import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nonpareil.errors import ConfigError, NonpareilError

T = TypeVar("T")


def typed(cls: type[T], values: Any, where: str) -> T:
    """An options dataclass from YAML's values, converted as flags are (`1e-6` is text to YAML).

    Raises:
        ConfigError: a key it does not have, with the nearest, or a value of another type.
    """
    from transformers import HfArgumentParser

    values = mapping(values, where)
    refuse_unknown(values, [f.name for f in fields(cls) if f.init], where)  # type: ignore[arg-type]
    parser = HfArgumentParser(cls, exit_on_error=False, allow_abbrev=False)  # type: ignore[arg-type]
    # argparse converts the defaults that are text.
    parser.set_defaults(**{k: str(v) if isinstance(v, bool | int | float) else v for k, v in values.items()})
    try:
        (instance,) = parser.parse_args_into_dataclasses([], look_for_args_file=False)
    except NonpareilError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError, ImportError) as error:
        reason = str(error)
        if isinstance(error, argparse.ArgumentError):  # names the flag in two spellings
            reason = f"{(error.argument_name or '').split('/')[0].removeprefix('--')}: {error.message}"
        raise ConfigError(f"{where + ': ' if where else ''}{reason}") from error
    return instance


def refuse_unknown(values: Mapping[Any, Any], known: list[str], where: str) -> None:
    """Refuse a key that is not among those known, with the nearest."""
    for key in values:
        if key not in known:
            inside = f"{where}: " if where else ""
            raise ConfigError(f"{inside}unknown key {key!r}{nearest(str(key), known)}")


def nearest(key: str, known: list[str], prefix: str = "") -> str:
    """`; did you mean ...?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, which YAML's loader would take the last of."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does."""
        merge = "tag:yaml.org,2002:merge"  # `<<`, which stands for other keys
        keys = [self.construct_object(key) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{key!r} is given twice (line {node.start_mark.line + 1} ff.); remove one")
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[Any, Any]:
    """The keys and values of a file.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or something other than keys and values.
    """
    if not path.is_file():
        raise ConfigError(f"config={str(path)!r}: no such file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except ConfigError as error:
        raise ConfigError(f"config={str(path)!r}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"config={str(path)!r} is not YAML: {error}") from error
    return dict(mapping(content, f"config={str(path)!r}"))


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A section as it is, an empty one as {}.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold keys and values, not {value!r:.60}")
    return value
