"""Flags and YAML into option dataclasses: flags override YAML, unknown keys name the nearest one."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nonpareil.errors import ConfigError
from nonpareil.options.given import instances_of, method_settings_of, settings_of_command
from nonpareil.options.yaml import load_yaml, meant, refuse_unknown
from nonpareil.setting_types import check_value
from nonpareil.settings import Setting


def parse(
    command: str,
    dataclasses: Sequence[type],
    argv: Sequence[str],
    *,
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    config_is_options: bool = True,
) -> tuple[list[Any], dict[str, Any], bool]:
    """The dataclass instances, what the user gave (YAML and flags), and whether `--json` was among the flags.

    Where a class has a setting `method`, the settings of the method that is named are taken too; the method itself
    then stands in the name's place.

    `defaults`, a function of what was given, replace the dataclasses' own; YAML replaces them, and flags YAML.
    A file that holds no options is only named, in the instances' `config_file`.

    Raises:
        ConfigError: a file that cannot be read, a key that no dataclass has, with the nearest one, or a value that
            cannot be.
    """
    settings = settings_of_command(dataclasses)
    of_method: dict[str, Setting] = {}
    if "method" in settings:  # its class says which other settings there are
        of_method = method_settings_of(dataclasses, _method_named(argv, settings["method"]))
        settings |= of_method
    parser = CommandParser(prog=f"nonpareil {command}", add_help=False, allow_abbrev=False)
    for setting in settings.values():
        _add_flag(parser, setting)
    parser.add_argument("--config")
    parser.add_argument("--json", action="store_true")
    refuse_unknown_flags(argv, parser, [*settings, "config", "json"])
    flags = vars(parser.parse_args(list(argv)))
    config_file, as_json = flags.pop("config"), flags.pop("json")
    read = config_file is not None and config_is_options
    given = {**(_read(config_file, settings) if read else {}), **flags}
    instances = instances_of(dataclasses, given, of_method, defaults)
    for instance in instances:
        if hasattr(instance, "config_file"):
            instance.config_file = config_file
    _quiet()
    return instances, given, as_json


def _method_named(argv: Sequence[str], setting: Setting) -> str:
    """By flags, or else by YAML, or else the default.

    Raises:
        ConfigError: a file that cannot be read, or a name that is no text.
    """
    parser = CommandParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", nargs="?")
    parser.add_argument("--config", nargs="?")
    flags, _ = parser.parse_known_args(list(argv))
    named = flags.method
    if named is None and flags.config is not None:
        named = load_yaml(Path(flags.config)).get("method")
    if named is None:
        return setting.default
    check_value("method", named, str)
    return named


class CommandParser(argparse.ArgumentParser):
    """Says in one line what is wrong, in place of the usage of all flags. `-1e-3` is a value, and no flag."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._negative_number_matcher = re.compile(r"-[0-9.]")

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}; see {self.prog} --help")


def refuse_unknown_flags(argv: Sequence[str], parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Refuse a flag that the parser has not, with the nearest.

    Raises:
        ConfigError: naming it.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    for word in argv:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag not in known:
            raise ConfigError(f"unknown flag {flag}{meant(flag.removeprefix('--'), names, '--')}")


def _add_flag(parser: argparse.ArgumentParser, setting: Setting) -> None:
    """A flag whose words stay text: what they mean is read as in YAML. Not given, it leaves no trace."""
    name = setting.name
    shape: dict[str, Any] = {}
    if setting.is_list:
        shape["nargs"] = "+"
    elif bool in setting.kinds:
        shape = {"nargs": "?", "const": "true"}
    parser.add_argument(*_spellings(name), dest=name, default=argparse.SUPPRESS, **shape)
    if setting.default is True:
        parser.add_argument(
            *_spellings(f"no_{name}"),
            dest=name,
            action="store_const",
            const="false",
            default=argparse.SUPPRESS,
        )


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _read(path: str, names: Iterable[str]) -> dict[str, Any]:
    content = load_yaml(Path(path))
    refuse_unknown(content, names, f"config={path!r}")
    return content


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and writing weights; ours and the trainer's stay
