"""`--method` is read before all other flags: the fields of its class are flags too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonpareil.cli.parsing import CommandParser, parse
from nonpareil.options.methods import read_method, settings_of_methods
from nonpareil.options.yaml import load_yaml
from nonpareil.settings import settings_of


def parse_with_method(
    command: str,
    dataclasses: tuple[type, type],
    argv: Sequence[str],
    *,
    defaults: Mapping[str, Any] | None = None,
    **texts: str,
) -> tuple[list[Any], dict[str, Any], bool]:
    """As `parse`, of options (with `groups`) and a training's config, whose `method` becomes the object.

    Raises:
        ConfigError: as `parse`; no such method, or a setting that it does not read or that cannot be.
    """
    options_class, config_class = dataclasses
    method = settings_of(config_class)["method"]
    named = _named(command, argv)
    name = method.default if named is None else method.read(named)
    settings = settings_of_methods(name, options_class, config_class)
    instances, given, as_json = parse(
        command, dataclasses, argv, defaults=defaults, method_settings=settings, **texts
    )
    options, config = instances
    of_method = {key: given[key] for key in settings if key in given}
    config.method = read_method(name, of_method, stored=options.groups is not None)
    return instances, given, as_json


def _named(command: str, argv: Sequence[str]) -> Any:
    """What flags or else YAML give for `method`; None where neither does."""
    parser = CommandParser(prog=f"nonpareil {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--method")
    parser.add_argument("--config")
    flags, _ = parser.parse_known_args(list(argv))
    if flags.method is not None or flags.config is None:
        return flags.method
    return load_yaml(Path(flags.config)).get("method")
