"""Floor 3: one file a method; numbers only, no models."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.methods.base import Method
from nonpareil.methods.bonbon import BoNBoN
from nonpareil.methods.bond import BOND
from nonpareil.methods.jbond import JBOND
from nonpareil.methods.regression import Regression
from nonpareil.methods.rloo import RLOO
from nonpareil.methods.sft_bon import SFTBoN
from nonpareil.methods.vbon import VBON

METHODS: dict[str, type] = {
    "jbond": JBOND,
    "bond": BOND,
    "vbon": VBON,
    "bonbon": BoNBoN,
    "sft_bon": SFTBoN,
    "regression": Regression,
    "rloo": RLOO,
}


def method_class(name: str) -> type:
    """The class of one of our methods.

    Raises:
        ConfigError: no method of this name; names the nearest.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}."
        raise ConfigError(f"method={name!r} is unknown; {hint} Your own: path/to/file.py:Class")
    return METHODS[name]


def build(method: str | type, settings: Mapping[str, Any], *, stored: bool = False) -> Method:
    """A method from its name (or class) and the settings that were given; the others keep its defaults.

    `stored`: whether groups on disk take the place of fresh reference draws.

    Raises:
        ConfigError: a setting that the method does not read or that is out of its range, or stored groups that
            the method needs and has not, or has and does not use.
    """
    cls = method_class(method) if isinstance(method, str) else method
    label = method if isinstance(method, str) else cls.__name__
    groups = getattr(cls, "stored_groups", "refused")
    unread = getattr(cls, "unread_with_groups", ()) if stored else ()
    known = {field.name for field in fields(cls)} - {"stored", *unread}
    for name, value in settings.items():
        if name not in known:
            where = f"{label} with groups" if name in unread else label
            raise ConfigError(
                f"{name}={value!r} is not read by method={where}, which reads {', '.join(sorted(known))}; "
                f"remove {name}"
            )
    if stored and groups == "refused":
        raise ConfigError(f"groups is not read by method={label}, which draws its own; remove groups")
    if not stored and groups == "required":
        raise ConfigError(
            f"groups is missing: method={label} trains on stored groups; draw them with `nonpareil sample`"
        )
    made = cls(**settings, **({"stored": stored} if groups == "optional" else {}))
    for name, reason in getattr(made, "inert_settings", {}).items():
        if name in settings:
            raise ConfigError(
                f"{name}={settings[name]!r} is not read by method={label} with {reason}; remove {name}"
            )
    return made
