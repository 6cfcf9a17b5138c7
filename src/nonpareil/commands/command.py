"""What the command line knows of a command: how it is asked for, what it runs, and how its result is shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


def _no_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_keys() -> dict[str, type]:
    return {}


def _unchanged(result: dict[str, Any]) -> dict[str, Any]:
    return result


def _done(result: dict[str, Any]) -> int:
    return 0


@dataclass(frozen=True)
class Command:
    """A command's record: `COMMAND` in its module or, where it has a folder, in the `command.py` there.

    The command line parses flags and YAML into the `options`, calls `run` with one instance of each, then `show`
    with its result, prints `as_json` of the result where `--json` was given, and exits with its `status`. Of an
    empty result nothing is shown or printed: it is that of one of several processes, and another one tells.
    """

    description: str
    """What `--help` begins with."""
    example: str
    """What `--help` ends with."""
    options: Callable[[], Sequence[type]]
    """The option classes. A function: some of them may take seconds to import."""
    run: Callable[..., dict[str, Any]]
    show: Callable[[dict[str, Any]], None]
    """Says on stderr what was done."""
    listed: Callable[[], Sequence[type]] | None = None
    """The classes that `--help` lists, where `options` take seconds to import; `--help-all` lists those."""
    keys: Callable[[], Mapping[str, type]] = _no_keys
    """The settings in the file that `config` names, where they are no flags: the class of each section."""
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _no_defaults
    """From what was given in flags and YAML: what stands in for the rest, in place of the classes' own defaults."""
    as_json: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged
    """The result as `json.dumps` takes it."""
    status: Callable[[dict[str, Any]], int] = _done
    """The exit status: 0 done, 1 in part, 130 interrupted."""
    config: str = "Options from a YAML file; flags override it."
    """What `--config` names, for `--help`."""
    config_is_options: bool = True
    """Whether that file holds options; where not, `run` reads it, as its options' `config_file`."""


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' own progress bars of loading and writing weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
