"""Settings that know themselves: what each may be stands at its declaration, and is checked in one place."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, get_origin, get_type_hints

from nonpareil.errors import ConfigError
from nonpareil.setting_types import Limits, check_value, kinds_of, read_value, shown

DTYPES = ("auto", "bfloat16", "float16", "float32")


class _Metadata(dict[str, Any]):
    """Of a field. transformers' HfArgumentParser gives a copy of all metadata to argparse, which knows `help`."""

    def keys(self) -> Any:
        """Of what argparse knows; `dict(metadata)`, the copy of transformers from 5.24 on, takes these."""
        return {"help": None}.keys()

    def copy(self) -> dict[str, Any]:
        """The same, as earlier versions copy."""
        return {"help": self["help"]}


def option(default: Any, help: str, *, heading: str | None = None, **limits: Any) -> Any:
    """A field of an options dataclass; `limits` are those of `Limits`.

    `--help` lists it under the heading; without one, under the class's `HEADING`.
    """
    metadata = _Metadata(help=help, heading=heading, limits=Limits(**limits))
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One field of an options dataclass."""

    name: str
    hint: Any
    default: Any
    limits: Limits
    help: str = ""
    heading: str = ""
    """What `--help` lists it under; empty for an inherited setting of a class that is not ours."""

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that its annotation allows."""
        return kinds_of(self.hint)

    @property
    def is_list(self) -> bool:
        """Whether several words may be given."""
        return any(get_origin(kind) is list for kind in self.kinds)

    def check(self, value: Any, where: str = "") -> None:
        """Refuse a value of another type, out of its range or not among its choices; the default is always taken.

        Raises:
            ConfigError: naming the setting (`where` before it), the value and what it must be.
        """
        if value is self.default or (type(value) is type(self.default) and value == self.default):
            return
        check_value(f"{where}{self.name}", value, self.hint, self.limits)

    def read(self, given: Any, where: str = "") -> Any:
        """The value of what a flag (text) or YAML (text, numbers, lists, ...) holds, checked.

        Raises:
            ConfigError: as `check`.
        """
        try:
            value = read_value(given, self.hint)
        except ConfigError as error:
            raise ConfigError(f"{where}{self.name}={error}") from error
        self.check(value, where)
        return value


def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings of an options dataclass by name; its `LIMITS`, where it has some, speak of inherited fields."""
    return _settings_of(cls)


@cache
def _settings_of(cls: Any) -> dict[str, Setting]:
    hints, inherited = get_type_hints(cls), getattr(cls, "LIMITS", {})
    found = {}
    for one in fields(cls):
        if one.init and get_origin(hints[one.name]) is not ClassVar:
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            limits = one.metadata.get("limits") or inherited.get(one.name) or Limits()
            help = one.metadata.get("help", "")
            heading = one.metadata.get("heading") or _heading(cls, one.name)
            found[one.name] = Setting(one.name, hints[one.name], default, limits, help, heading)
    for name in found:
        _refuse_circle(cls, found, name)
    return found


def _owner(settings: Mapping[str, Setting], name: str) -> str | None:
    """The setting that one belongs to; None where it is none of these."""
    owner = (settings[name].limits.of or "").partition("=")[0]
    return owner if owner in settings else None


def _refuse_circle(cls: Any, settings: Mapping[str, Setting], name: str) -> None:
    way, owner = [name], _owner(settings, name)
    while owner is not None and owner not in way:
        way, owner = [*way, owner], _owner(settings, owner)
    if owner == name:
        raise ConfigError(
            f"{cls.__name__}: the setting {name!r} belongs to itself ({' of '.join([*way, name])}), so that none "
            "of them could be read; let one of them belong to no other (of)"
        )


def offered(cls: Any) -> dict[str, Setting]:
    """The settings that may have another value than their default: not those of a setting that may not."""
    settings = settings_of(cls)

    def may(name: str) -> bool:
        limits, owner = settings[name].limits, _owner(settings, name)
        return limits.unread is None and limits.refused is None and (owner is None or may(owner))

    return {name: one for name, one in settings.items() if may(name)}


def _heading(cls: type, name: str) -> str:
    """That of the class where the setting comes from: a command that declares it anew narrows what it shares."""
    for each in reversed(cls.__mro__):
        if "HEADING" in vars(each) and name in vars(each).get("__dataclass_fields__", ()):
            return vars(each)["HEADING"]
    return ""


def check_settings(options: Any) -> None:
    """Check every setting of an options dataclass by its annotation and limits.

    Raises:
        ConfigError: the first that cannot be, or one that nothing reads.
    """
    for name, setting in settings_of(type(options)).items():
        setting.check(getattr(options, name))
    refuse_unread(options)


class CheckedOptions:
    """What dataclasses of options inherit: no instance holds a setting that cannot be."""

    def __post_init__(self) -> None:
        """See `check_settings`."""
        check_settings(self)


def refuse_unread(options: Any, absent: Mapping[str, str] | None = None) -> None:
    """Refuse a setting that differs from its default where nothing would read it.

    What it belongs to (`of`) is told by the other settings. `absent` has each `reader` that is not there, and why.

    Raises:
        ConfigError: naming the setting and what would read it.
    """
    settings = settings_of(type(options))
    for name, setting in settings.items():
        value, limits = getattr(options, name), setting.limits
        if value == setting.default:
            continue
        given = f"{name}={shown(value)}"
        if limits.refused is not None:
            raise ConfigError(f"{given} {limits.refused}")
        if limits.unread is not None:
            raise ConfigError(f"{given} is read by nothing here: {limits.unread}; remove it")
        if absent and limits.reader is not None and limits.reader in absent:
            raise ConfigError(
                f"{given} is read by {limits.reader} only, and {absent[limits.reader]}; remove it"
            )
        owner = _owner(settings, name)
        if owner is not None and (refused := settings[owner].limits.refused) is not None:
            raise ConfigError(f"{given} is not read: {owner} {refused}; remove {name}")
        if limits.of is not None and (lacks := _lacks(options, settings, limits.of)):
            raise ConfigError(f"{given} is not read {lacks}, or remove {name}")


def _lacks(options: Any, settings: Mapping[str, Setting], of: str) -> str:
    """What is not as a setting that belongs to it needs it, and what to give; empty where all is.

    What belongs to another setting is not there without that one. Where a command has no such setting, there is
    nothing to choose.
    """
    owner, _, wanted = of.partition("=")
    if owner not in settings:
        return ""
    outer = settings[owner].limits.of
    if outer is not None and (lacks := _lacks(options, settings, outer)):
        return lacks
    has = getattr(options, owner)
    has = getattr(has, "value", has)  # of an enum
    words = wanted.split("|")
    if wanted and str(has) not in words:
        return f"with {owner}={has}; give {owner}={' or '.join(words)}"
    return f"without {owner}; give that" if not wanted and has in (None, False, "no", []) else ""


def read_settings(cls: Any, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values of what was given for some of a class's settings.

    Raises:
        ConfigError: as `Setting.read`.
    """
    known = settings_of(cls)
    return {name: known[name].read(value, where) for name, value in given.items()}


def values_of(options: Any, *classes: type) -> dict[str, Any]:
    """The values that options hold of the settings of these classes, by name."""
    return {name: getattr(options, name) for cls in classes for name in settings_of(cls)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name, with both values; one that a side lacks is None there."""
    names = dict.fromkeys((*there, *here))
    return {name: (there.get(name), here.get(name)) for name in names if there.get(name) != here.get(name)}
