"""The settings of a method among the options of a training: the fields of its class, and no others."""

from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any

from nonpareil.errors import ConfigError
from nonpareil.setting_types import read_value
from nonpareil.settings import Setting, settings_of

if TYPE_CHECKING:
    from nonpareil.methods.base import Method

_OF_EVERY_COMMAND = ("config", "json", "help")


def settings_of_methods(name: str, *beside: type) -> dict[str, Setting]:
    """The settings of the method that is named, and those of our others, which `read_method` refuses by name.

    `beside`: the classes of options that are read together with them.

    Raises:
        ConfigError: no such method, or one whose setting has the name of an option.
    """
    from nonpareil.methods import METHODS, method_class, method_settings
    from nonpareil.methods.base import Method

    own = method_settings(method_class(name))
    taken = {*_OF_EVERY_COMMAND, *(option for cls in beside for option in settings_of(cls))}
    for setting in own:
        if setting.removeprefix("no_") in taken | ({*own} - {setting}):
            remedy = f"declare it as {setting}: ClassVar" if hasattr(Method, setting) else "rename the field"
            raise ConfigError(
                f"method={name!r}: its setting {setting!r} has the name of an option of the command, or of its "
                f"negation (no_...); {remedy}"
            )
    others = {key: one for cls in METHODS.values() for key, one in method_settings(cls).items()}
    return {**others, **own}


def read_method(name: str, given: Mapping[str, Any], *, stored: bool) -> "Method":
    """A method as flags or YAML describe it; `given`: some of `settings_of_methods`. `stored`: groups are given.

    Raises:
        ConfigError: as `methods.build`.
    """
    from nonpareil.methods import build, method_class, method_settings

    cls, known = method_class(name), settings_of_methods(name)
    values = {
        key: typed_value(known[key], value)
        for key, value in given.items()
        if not _is_default(known[key], value)
    }
    for key, setting in method_settings(cls).items():
        if key in values:
            setting.check(values[key])
    return build(cls, values, stored=stored)


def reads_credits(method: "Method | str") -> bool:
    """Whether a method, or the one of this name, learns from credits of stored completions.

    Raises:
        ConfigError: no such method.
    """
    from nonpareil.methods import method_class
    from nonpareil.methods.credited import CreditedMethod

    return issubclass(method_class(method) if isinstance(method, str) else type(method), CreditedMethod)


def training_defaults(method: str | None) -> Mapping[str, Any]:
    """What the method of this name has for a training's settings that are not given; None: that of the default.

    Raises:
        ConfigError: no such method.
    """
    from nonpareil.methods import method_class

    return {} if method is None else method_class(method).training_defaults


def learns_from_groups(given: Mapping[str, Any], method: "Method | str") -> bool:
    """Whether stored groups are given, by the settings of a training, or are drawn before it.

    Raises:
        ConfigError: no such method.
    """
    return given.get("groups") is not None or (given.get("credits") is None and reads_credits(method))


def typed_value(setting: Setting, given: Any) -> Any:
    """What flags and YAML give, read by the setting's type; its range is checked with those of the method alone.

    Raises:
        ConfigError: it is of no such type, naming the setting.
    """
    try:
        return read_value(given, setting.hint)
    except ConfigError as error:
        raise ConfigError(f"{setting.name}={error}") from error


def _is_default(setting: Setting, value: Any) -> bool:
    """Whether it is YAML's null, where the setting has no such value: its default is meant."""
    return value is None and NoneType not in setting.kinds
