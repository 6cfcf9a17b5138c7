"""The methods: one file each; numbers only, no models."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.files import jsonable
from nonpareil.methods.base import Method
from nonpareil.methods.bonbon import BoNBoN
from nonpareil.methods.bond import BOND
from nonpareil.methods.jbond import JBOND
from nonpareil.methods.regression import Regression
from nonpareil.methods.rloo import RLOO
from nonpareil.methods.sft_bon import SFTBoN
from nonpareil.methods.value_distillation import ValueDistillation
from nonpareil.methods.vbon import VBON
from nonpareil.setting_types import nearest, shown
from nonpareil.settings import Setting, settings_of
from nonpareil.user_code.load import is_function_path, load_function

METHODS: dict[str, type[Method]] = {
    "jbond": JBOND,
    "bond": BOND,
    "vbon": VBON,
    "bonbon": BoNBoN,
    "sft_bon": SFTBoN,
    "regression": Regression,
    "value_distillation": ValueDistillation,
    "rloo": RLOO,
}


def method_class(name: str) -> type[Method]:
    """The class of one of our methods, or a user's own by `path/to/file.py:Class` (docs/own-method.md).

    Raises:
        ConfigError: no method of this name, naming the nearest; or a class that cannot be a method.
    """
    if name in METHODS:
        return METHODS[name]
    if is_function_path(name):
        return _own_class(name)
    hint = nearest(name, METHODS) or f"; there are {', '.join(METHODS)}."
    raise ConfigError(f"method={name!r} is unknown{hint} Your own: path/to/file.py:Class")


def name_of(cls: type[Method]) -> str:
    """One of ours by its name, a user's own by its class."""
    return next((name for name, ours in METHODS.items() if ours is cls), cls.__name__)


def spec_of(cls: type[Method]) -> str:
    """As a user names it, without folders: `bond`, or `tilt.py:Tilt`."""
    if cls in METHODS.values():
        return name_of(cls)
    try:
        return f"{Path(inspect.getfile(cls)).name}:{cls.__name__}"
    except (OSError, TypeError):  # made at a prompt
        return cls.__name__


def method_settings(cls: type[Method]) -> dict[str, Setting]:
    """The settings of a method by name: its fields, but for `stored`, which says whether groups are given."""
    return {name: setting for name, setting in settings_of(cls).items() if name != "stored"}


def plain_settings(method: Method) -> dict[str, Any]:
    """What a method is set to, as JSON has it; as text what JSON has no form for."""

    def plain(value: Any) -> Any:
        try:
            return jsonable(value, keep_infinities=True)
        except TypeError:
            return str(value)

    return {name: plain(value) for name, value in vars(method).items()}


def build(method: str | type[Method], settings: Mapping[str, Any], *, stored: bool = False) -> Method:
    """A method from its name (or class) and the settings that were given; the others keep its defaults.

    `stored`: whether groups on disk take the place of fresh reference draws.

    Raises:
        ConfigError: a setting that the method does not read or that is out of its range, or stored groups that
            the method needs and has not, or has and does not use.
    """
    cls = method_class(method) if isinstance(method, str) else method
    label = name_of(cls)
    unread = cls.unread_with_groups if stored else ()
    known = {*method_settings(cls)} - {*unread}
    for name, value in settings.items():
        if name not in known:
            where = f"{label} with groups" if name in unread else label
            reads = f"which reads {', '.join(sorted(known))}" if known else "which has no settings"
            raise ConfigError(f"{name}={value!r} is not read by method={where}, {reads}; remove {name}")
    if stored and cls.stored_groups == "refused":
        raise ConfigError(f"groups is not read by method={label}, which draws its own; remove groups")
    if not stored and cls.stored_groups == "required":
        raise ConfigError(
            f"groups is missing: method={label} trains on stored groups; draw them with `nonpareil sample`"
        )
    made = cls(**settings, **({"stored": stored} if cls.stored_groups == "optional" else {}))
    for name, reason in made.inert_settings.items():
        if name in settings:
            raise ConfigError(
                f"{name}={settings[name]!r} is not read by method={label} with {reason}; remove {name}"
            )
    return made


_TRLS_NAMES = {"beta": "kl_coef"}
"""What a TRL's script calls a setting of methods."""


def where_it_belongs(name: str, value: Any, method: Any, known: Iterable[str]) -> str:
    """What to say of a training's setting that there is not: which methods have it, and how it is given to one.

    Args:
        name: of the setting.
        value: what was given.
        method: the training's, by name or as an object.
        known: the settings that a training has.

    Raises:
        ConfigError: `method` names none.
    """
    if name in _TRLS_NAMES:
        ours = _TRLS_NAMES[name]
        return f"{name}={shown(value)} of TRL is {ours} here: {where_it_belongs(ours, value, method, known)}"
    named = method_class(method) if isinstance(method, str) else type(method)
    having = [cls for cls in METHODS.values() if name in method_settings(cls)]
    if issubclass(named, Method) and name in method_settings(named):
        having = [named]
    given = f"{name}={shown(value)}"
    if not having:
        return f"{given}: there is no such setting{nearest(name, known) or '; remove it'}"
    one = f"method={having[0].__name__}({given})"
    if having == [named]:
        return f"{given} is a setting of method={name_of(named)}, and given to it: {one}"
    return (
        f"{given} is a setting of {', '.join(map(name_of, having))}, and not read by method={name_of(named)}; "
        f"remove it, or train by one that reads it: {one}"
    )


def check_class(cls: Any, name: str) -> None:
    """Refuse what is no method; `name` is how the user named it.

    Raises:
        ConfigError: no dataclass, not a subclass of `Method`, or one that cannot hold what it says of groups.
    """
    if not isinstance(cls, type) or not is_dataclass(cls):
        raise ConfigError(f"method={name!r} must be a dataclass, whose fields are its settings")
    if not issubclass(cls, Method):
        raise ConfigError(
            f"method={name!r} must be a subclass of nonpareil.methods.base.Method, which holds what a class does "
            f"not say: class {cls.__name__}(Method); see docs/own-method.md"
        )
    try:
        known = settings_of(cls)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigError(f"method={name!r}: the types of its fields cannot be read: {error}") from error
    if cls.stored_groups == "optional" and "stored" not in known:
        raise ConfigError(
            f"method={name!r} has stored_groups='optional' and no field `stored: bool = False`, which says whether "
            "groups are given; add it"
        )


def _own_class(name: str) -> type[Method]:
    """A user's class from a file or module, once it can be a method of these settings."""
    cls: Any = load_function(name)
    check_class(cls, name)
    bare = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    if bare:
        raise ConfigError(f"method={name!r}: the setting {bare[0]!r} has no default; give it one")
    if missing := sorted(cls.__abstractmethods__):
        raise ConfigError(f"method={name!r} has no {', '.join(missing)}; see docs/own-method.md")
    return cls
