"""Flags and YAML into option dataclasses: flags override YAML, unknown keys name the nearest one."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.utils import logging

from nonpareil.errors import ConfigError
from nonpareil.jobs.yaml_options import load_yaml, nearest, refuse_unknown


def parse(
    command: str,
    dataclasses: Sequence[type],
    argv: Sequence[str],
    *,
    description: str,
    example: str,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[list[Any], dict[str, Any], bool]:
    """The dataclass instances, what the user gave (YAML and flags), and whether `--json` was among the flags.

    `defaults` replace the dataclasses' own; YAML replaces them, and flags replace YAML.

    Raises:
        ConfigError: a file that cannot be read, or a key that no dataclass has, with the nearest one.
    """
    logging.disable_progress_bar()  # of loading and writing weights; ours and the trainer's stay
    parser = HfArgumentParser(
        list[Any](dataclasses),
        prog=f"nonpareil {command}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Options from a YAML file; flags override it.")
    parser.add_argument(
        "--json", action="store_true", help="Print one JSON object as the last line of stdout."
    )
    names = sorted({f.name for dataclass in dataclasses for f in fields(dataclass) if f.init})
    refuse_unknown_flags(argv, parser, names)
    config_file = parser.parse_known_args([*argv], argparse.Namespace())[0].config
    from_file = _read(config_file, names) if config_file else {}
    parser.set_defaults(**{key: _as_text(value) for key, value in {**(defaults or {}), **from_file}.items()})
    *instances, rest = parser.parse_args_into_dataclasses(list(argv), look_for_args_file=False)
    for instance in instances:
        if hasattr(instance, "config_file"):
            instance.config_file = config_file
    flags = {name for name in names if any(a == f"--{name}" or a.startswith(f"--{name}=") for a in argv)}
    given = {**from_file, **dict.fromkeys(flags, True)}
    return instances, given, rest.json


def _read(path: str, names: list[str]) -> dict[str, Any]:
    content = load_yaml(Path(path))
    refuse_unknown(content, names, f"config={path!r}")
    return content


def refuse_unknown_flags(argv: Sequence[str], parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Refuse a flag that the parser has not, with the nearest.

    Raises:
        ConfigError: naming it.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    for word in argv:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag not in known:
            raise ConfigError(f"unknown flag {flag}{nearest(flag.removeprefix('--'), names, '--')}")


def _as_text(value: Any) -> Any:
    """Scalars as argparse would see them on the command line, so that YAML's `1e-6` (a string) is a number."""
    return str(value) if isinstance(value, bool | int | float) else value
