"""What a user calls a verifier: its name, and settings behind a colon, `accuracy:answer_column=solution`."""

import importlib
import re
from typing import TYPE_CHECKING

from nonpareil.errors import ConfigError
from nonpareil.setting_types import nearest
from nonpareil.settings import read_settings, settings_of

if TYPE_CHECKING:
    from nonpareil.rewards.verifiers.base import Verifier

VERIFIERS = {
    "accuracy": "nonpareil.rewards.verifiers.accuracy:Accuracy",
    "format": "nonpareil.rewards.verifiers.format:Format",
    "instructions": "nonpareil.rewards.verifiers.instructions:Instructions",
    "length": "nonpareil.rewards.verifiers.length:Length",
    "python_tests": "nonpareil.rewards.verifiers.python_tests:PythonTests",
    "similarity": "nonpareil.rewards.verifiers.similarity:Similarity",
    "reasoning_gym": "nonpareil.rewards.verifiers.reasoning_gym:ReasoningGym",
}
"""Name -> module:class, imported when it is asked for."""
_WRITTEN = re.compile(r"(?P<name>\w+)(:(?P<settings>|.*=.*))?", re.DOTALL)


def is_verifier(spec: str) -> bool:
    """Whether a text names a verifier, perhaps with settings; `accuracy:fn` is a function of a module accuracy."""
    written = _WRITTEN.fullmatch(spec)
    return written is not None and written["name"] in VERIFIERS


def refuse_near_miss(spec: str) -> None:
    """Refuse a bare name that is no verifier's, and looks like one: no model has such a name.

    Raises:
        ConfigError: with the name that was probably meant.
    """
    written = _WRITTEN.fullmatch(spec)
    if written is None or written["name"] in VERIFIERS:
        return
    hint = nearest(written["name"], VERIFIERS, quoted=True)
    if hint or written["settings"]:
        raise ConfigError(
            f"no verifier is called {written['name']!r}{hint or '; there are: ' + ', '.join(VERIFIERS)}"
        )


def make_verifier(spec: str, timeout: float | None = None) -> "Verifier":
    """The verifier of `name` or `name:setting=value,setting=value`.

    Args:
        spec: its name and settings.
        timeout: of one that takes a limit (`timeout`) and was given none in its settings; None for its own.

    Raises:
        ConfigError: no such name or setting, a value that cannot be, or a package that is not installed.
    """
    written = _WRITTEN.fullmatch(spec)
    name = written["name"] if written else spec
    if written is None or name not in VERIFIERS:
        raise ConfigError(
            f"no verifier is called {name!r}{nearest(name, VERIFIERS, quoted=True)}; "
            f"there are: {', '.join(VERIFIERS)}"
        )
    module, _, attribute = VERIFIERS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    given = _settings(written["settings"] or "", name, [*settings_of(cls)])
    try:
        values = read_settings(cls, given, f"reward {name!r}: ")
        if timeout is not None and "timeout" in settings_of(cls):
            values.setdefault("timeout", timeout)
        return cls(**values)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if repr(name) in message else f"reward {name!r}: {message}") from error


def _settings(text: str, name: str, known: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ConfigError(
                f"reward {name!r}: {part!r} is no setting=value; write {name}:setting=value,setting=value"
            )
        if key not in known:
            has = f"; it has: {', '.join(known)}" if known else ", and has none"
            raise ConfigError(
                f"reward {name!r} has no setting {key!r}{nearest(key, known, quoted=True) or has}"
            )
        if key in given:
            raise ConfigError(f"reward {name!r}: {key} is given twice")
        given[key] = value
    return given
