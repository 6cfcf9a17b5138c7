"""The text of `nonpareil <command> --help`: each setting once, under a heading, with its default."""

import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from nonpareil.cli.method_help import VALUES, Row, has_fixed_anchor, method_section
from nonpareil.commands.command import Command
from nonpareil.options.keywords import HEADINGS
from nonpareil.settings import Setting, offered, settings_of

HELP = ("-h", "--help", "--help-all")
"""Flags that ask for it."""
INHERITED = "transformers.TrainingArguments"
"""The heading of settings that are declared in no class of ours."""
_JSON: Row = ("--json", "Print one JSON object as the last line of stdout.")
_COLUMN = 34
"""Where texts begin."""


def help_text(name: str, command: Command, argv: Sequence[str]) -> str:
    """The help of a command for the flags that were given; after `--help-all`, with the settings it inherits.

    A setting is left out of which its default alone is taken.
    """
    everything = command.listed is None or "--help-all" in argv
    classes = command.options() if command.listed is None or everything else command.listed()
    known = {name for cls in classes for name in settings_of(cls)}
    parts = [
        f"usage: nonpareil {name} [--config FILE.yaml] [--flag value ...] [--json]",
        command.description.strip(),
    ]
    for heading, settings in by_heading(classes).items():
        if heading == "Method" and has_fixed_anchor(argv):
            settings = [one for one in settings if not one.name.startswith("anchor_")]
        parts.append(_section(heading, [_row(setting, known) for setting in settings]))
        if heading == "Method":
            parts.append(_section(*method_section(argv)))
    for title, cls in command.keys().items():
        sections = by_heading([cls])
        for heading, settings in sections.items():
            rows = [_row(setting, settings_of(cls), "") for setting in settings]
            parts.append(_section(f"{title}: {heading.lower()}" if len(sections) > 1 else title, rows))
    parts.append(_section("Besides", [("--config FILE.yaml", command.config), _JSON]))
    if not everything:
        parts.append(f"The other settings of {INHERITED} are flags too: nonpareil {name} --help-all")
    return "\n\n".join([*parts, f"example:\n  {command.example}\n"])


def by_heading(classes: Iterable[type]) -> dict[str, list[Setting]]:
    """The settings that may be given, by the heading that they are listed under; one of two classes once."""
    found: dict[str, list[Setting]] = {heading: [] for heading in (*HEADINGS, INHERITED)}
    once = {setting.name: setting for cls in classes for setting in offered(cls).values()}
    for setting in once.values():
        found[setting.heading or INHERITED].append(setting)
    return {heading: settings for heading, settings in found.items() if settings}


def _row(setting: Setting, known: Collection[str], dashes: str = "--") -> Row:
    """A setting among those that are known; what it belongs to is told where that is one of them."""
    flag = f"{dashes}{setting.name}"
    if dashes and setting.default is True:
        flag = f"--no_{setting.name}, {flag}"
    text = " ".join(setting.help.replace("%%", "%").split())  # transformers writes for argparse
    if "Default:" not in text:
        text += f" Default: {_said(setting.default)}."
    of = setting.limits.of or ""
    if of.partition("=")[0] in known:
        text += f" With {of.replace('|', ' or ')}."
    return f"{flag} {_stands_for(setting)}".strip(), text.strip()


def _said(value: Any) -> str:
    """A default as a flag would have it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(map(_said, value)) or "none"
    return str(value.value if isinstance(value, Enum) else value)


def _stands_for(setting: Setting) -> str:
    """What stands for the value: its choices, or a word for its type."""
    kinds = setting.kinds
    words = [word for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for word in kind]
    if not words and str not in kinds:
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    choices = setting.limits.choices or words
    if choices:
        return f"{{{','.join(map(_said, choices))}}}"
    if setting.is_list:
        inner = next(get_args(kind)[0] for kind in kinds if get_origin(kind) is list)
        return f"{VALUES.get(getattr(inner, '__name__', ''), 'TEXT')} ..."
    if bool in kinds:
        return ""
    if setting.limits.path or setting.limits.names == "input":
        return "PATH"
    if any(kind is dict or get_origin(kind) is dict for kind in kinds):
        return "JSON"
    names = (getattr(kind, "__name__", "") for kind in kinds)
    return next((VALUES[name] for name in names if name in VALUES), "TEXT")


def _section(heading: str, rows: Iterable[Row]) -> str:
    width = min(max(shutil.get_terminal_size((110, 24)).columns, 60), 120)
    lines = [heading]
    for flag, text in rows:
        wrapped = textwrap.wrap(text, width - _COLUMN, break_on_hyphens=False)
        if len(flag) > _COLUMN - 4:
            lines.append(f"  {flag}")
        else:
            lines.append(f"  {flag:<{_COLUMN - 2}}{wrapped.pop(0) if wrapped else ''}".rstrip())
        lines += [" " * _COLUMN + line for line in wrapped]
    return "\n".join(lines)
