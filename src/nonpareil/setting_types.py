"""Whether a value is what a setting's annotation and limits say, and what a text means under them."""

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from numbers import Integral, Real
from os import PathLike, fspath
from typing import Any, Literal, Union, get_args, get_origin

from nonpareil.errors import ConfigError

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
"""As YAML 1.2 and JSON write them. `010`, `1_000`, `0x10` and `1:30` are numbers to some readers, and differ."""
SEED = 2**32 - 1
"""The largest seed that numpy, torch and transformers all take."""
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")
_LARGEST = 2**63 - 1
_LONGEST_NAME = 255  # bytes, of a file on every common file system


@dataclass(frozen=True)
class Limits:
    """What a setting's annotation does not say. Of a list, the range is each element's."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    also: tuple[Any, ...] = ()
    """Values, and classes of values, that are taken besides, whatever type and range say."""
    why: str = ""
    path: bool = False
    """Whether it names a file or folder that is written."""
    names: Literal["input", "reward", "code"] | None = None
    """What it names that is read: an `input` (a file, folder or hub name), a `reward`, or `code` (file.py:Name)."""
    replaces_demo: bool = False
    """Whether giving it says that the embedded demo is not meant."""
    of: str | None = None
    """What it belongs to and is not read without: a setting, `setting=value`, or `setting=value|other`."""
    reader: str | None = None
    """What alone reads it, where no setting says whether that is there: `a reward model`, `hub datasets`."""
    unread: str | None = None
    """Why nothing reads it at all, for an inherited setting."""
    refused: str | None = None
    """Why only its default is taken, and what to do instead; a message has it behind `setting=value`."""
    compare: str | None = None
    """What to do instead of giving it to a run of `nonpareil compare`, which sets it itself."""

    def range(self) -> str:
        """In words, after `must`; empty without bounds."""
        low = (
            f"[{self.at_least:g}" if self.at_least is not None else f"({self.above:g}" if self._low() else ""
        )
        high = (
            f"{self.at_most:g}]" if self.at_most is not None else f"{self.below:g})" if self._high() else ""
        )
        if low and high:
            if self.above is not None and self.below is not None:
                return f"lie between {self.above:g} and {self.below:g}"
            if self.at_least is None or self.at_most is None:
                return f"lie in {low}, {high}"
            return f"be at least {self.at_least:g} and at most {_short(self.at_most)}"
        if low:
            return (
                f"be at least {self.at_least:g}" if self.at_least is not None else f"be above {self.above:g}"
            )
        if high:
            return f"be at most {self.at_most:g}" if self.at_most is not None else f"be below {self.below:g}"
        return ""

    def hold(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        bounds = (
            (self.at_least, lambda bound: value >= bound),
            (self.above, lambda bound: value > bound),
            (self.at_most, lambda bound: value <= bound),
            (self.below, lambda bound: value < bound),
        )
        return all(bound is None or holds(bound) for bound, holds in bounds)

    def _low(self) -> bool:
        return self.at_least is not None or self.above is not None

    def _high(self) -> bool:
        return self.at_most is not None or self.below is not None


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types in an annotation: those of a union, or itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def nearest(word: str, known: Iterable[str], prefix: str = "", *, quoted: bool = False) -> str:
    """`; did you mean ...?`, or nothing where nothing is near; `quoted` for names that others gave."""
    near = nearest_name(word, known)
    return "" if near is None else f"; did you mean {prefix}{repr(near) if quoted else near}?"


def nearest_name(word: str, known: Iterable[str]) -> str | None:
    """The known name that a word was probably meant to be; None where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return near[0] if near else None


def check_value(name: str, value: Any, hint: Any, limits: Limits | None = None, **bounds: Any) -> None:
    """Refuse an argument by its annotation and its limits, which may also be given one by one.

    Raises:
        ConfigError: naming it, its value and what it must be.
    """
    limits = limits or Limits(**bounds)
    if any(_is_one(value, one) for one in limits.also):
        return
    kinds = kinds_of(hint)
    if any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds):
        kinds = tuple(kind for kind in kinds if kind is not str)  # any text, beside the words that are meant
    if not any(_is(value, kind, limits) for kind in kinds):
        words = _choices(kinds, limits)
        wanted = f"be one of {', '.join(words)}" if words else _wanted(kinds, limits)
        raise ConfigError(f"{name}={shown(value)} must {wanted}{_remedy(value, kinds, words)}")
    for one in value if isinstance(value, list | tuple) else (value,):
        _check_one(name, value, one, limits)


def _is_one(value: Any, one: Any) -> bool:
    return isinstance(value, one) if isinstance(one, type) else type(value) is type(one) and value == one


def shown(value: Any) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_one(name: str, value: Any, one: Any, limits: Limits) -> None:
    reason = f": {limits.why}" if limits.why else ""
    if isinstance(one, Real) and not isinstance(one, bool) and not limits.hold(one):
        raise ConfigError(f"{name}={shown(value)} must {limits.range()}{reason}")
    if isinstance(one, str) and limits.choices is not None and one not in limits.choices:
        raise ConfigError(
            f"{name}={shown(value)} must be one of {', '.join(map(str, limits.choices))}"
            f"{nearest(one, [str(choice) for choice in limits.choices])}{reason}"
        )
    if limits.path and isinstance(one, str | PathLike):
        parts = str(one).split("/")
        if max(len(part.encode(errors="surrogateescape")) for part in parts) > _LONGEST_NAME:
            raise ConfigError(
                f"{name}={shown(value)}: a name is longer than {_LONGEST_NAME} bytes; shorten it"
            )


def _is(value: Any, kind: Any, limits: Limits) -> bool:
    """Whether a value is of a kind."""
    origin = get_origin(kind)
    if kind is Any:
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= _LARGEST
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if kind is str:
        if limits.path and isinstance(value, PathLike):
            value = fspath(value)
        return isinstance(value, str) and bool(value.strip()) and "\0" not in value
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if origin is list:
        inner = kinds_of(get_args(kind)[0])
        whole = isinstance(value, list | tuple) and all(
            any(_is(one, kind, limits) for kind in inner) for one in value
        )
        return whole and (bool(value) or not {int, float} & {*inner})
    if (origin or kind) is dict:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        return value in [one.value for one in kind]
    return isinstance(value, origin or kind)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float reaches
        return False


def _choices(kinds: tuple[Any, ...], limits: Limits) -> list[str]:
    """The words that are meant, where there are some."""
    words = [one.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for one in kind]
    words += [
        one for kind in kinds if get_origin(kind) is Literal for one in get_args(kind) if one is not False
    ]
    return list(map(str, limits.choices or words))


def _wanted(kinds: tuple[Any, ...], limits: Limits) -> str:
    """What a value of the wrong type should be, after `must`."""
    name = _name_of(next((kind for kind in kinds if kind is not types.NoneType), None))
    bounds = limits.range()
    if not bounds:
        return f"be {name}"
    if bounds.startswith("lie"):
        return f"be {name} and {bounds}"
    return f"be {name} {'of ' * bounds.startswith('be at')}{bounds[3:]}"


def _name_of(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    if get_origin(kind) is list:
        inner, whole = names.get(get_args(kind)[0], "values"), ("text", "values")
        return f"a list of {inner.removeprefix('a ').removeprefix('finite ')}{'' if inner in whole else 's'}"
    if (get_origin(kind) or kind) is dict:
        return "keys and values"
    return names.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _remedy(value: Any, kinds: tuple[Any, ...], words: list[str]) -> str:
    if value is None:
        return "; leave it out for its default"
    if isinstance(value, str) and not value.strip() and str in kinds:
        return "; it is empty"
    if isinstance(value, list) and any(isinstance(one, str) and not one.strip() for one in value):
        return "; one of them is empty"
    if isinstance(value, str) and any(get_origin(kind) is list for kind in kinds):
        return f", as [{value}]"
    if words:
        return nearest(str(value), words)
    if isinstance(value, int | float) and str in kinds:
        return "; put it in quotes"
    return ""


def _short(bound: float) -> str:
    return "2**32 - 1" if bound == SEED else f"{bound:g}"


def read_value(given: Any, hint: Any) -> Any:
    """What a flag or YAML gives, as the annotation would have it; what cannot be read stays as it is.

    Raises:
        ConfigError: text that begins as a JSON object and is none. It begins with the value, for a name before it.
    """
    kinds = kinds_of(hint)
    if isinstance(given, list):
        inner = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), Any)
        return [read_value(one, inner) for one in given]
    if isinstance(given, int) and not isinstance(given, bool):
        return float(given) if float in kinds and int not in kinds and abs(given) <= _LARGEST else given
    if not isinstance(given, str):
        return given
    for kind in kinds:
        if (value := _from_text(given, kind)) is not MISSING:
            return value
    return given


def _from_text(text: str, kind: Any) -> Any:
    """The value of a kind that a text means; MISSING where it means none."""
    if kind is int and INTEGER.fullmatch(text):
        return int(text)
    if kind is float and NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if kind is bool and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    if get_origin(kind) is Literal:
        return next((one for one in get_args(kind) if text == str(one)), MISSING)
    if (get_origin(kind) or kind) is dict and text.startswith("{"):
        return _json(text)
    return MISSING


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(text)} must be a JSON object: {error}") from error
