"""Settings that were given, by flags, YAML or Python's keywords, as instances of the classes that declare them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nonpareil.options.methods import learns_from_groups, read_method, settings_of_methods
from nonpareil.options.yaml import typed
from nonpareil.settings import Setting, settings_of

Defaults = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From what was given: what stands in for the rest, in place of the classes' own defaults."""


def settings_of_command(classes: Sequence[type]) -> dict[str, Setting]:
    """The settings of a command's classes by name; for its method's see `method_settings_of`."""
    return {name: one for cls in classes for name, one in settings_of(cls).items()}


def method_settings_of(classes: Sequence[type], method: str) -> dict[str, Setting]:
    """The settings of the method of this name, and of the others, where a class has a setting `method`.

    Raises:
        ConfigError: as `settings_of_methods`.
    """
    return settings_of_methods(method, *classes) if "method" in settings_of_command(classes) else {}


def instances_of(
    classes: Sequence[type],
    given: Mapping[str, Any],
    of_method: Mapping[str, Setting],
    defaults: Defaults | None = None,
) -> list[Any]:
    """One instance of each class. `given`: some of their settings and of `of_method`, the method's.

    A method's settings go into the method, which then stands in its name's place; an object has its own.

    Raises:
        ConfigError: a value that cannot be.
    """
    values = {**(defaults(given) if defaults else {}), **given}
    made: list[Any] = [
        typed(cls, {name: values[name] for name in settings_of(cls) if name in values}, "") for cls in classes
    ]
    config: Any = next((each for each in made if hasattr(each, "method")), None)
    if config is not None and isinstance(config.method, str) and of_method:
        own = {name: values[name] for name in of_method if name in values}
        config.method = read_method(config.method, own, stored=learns_from_groups(values, config.method))
    return made
