"""What a reward function was made with: of one source come functions that score otherwise."""

import dis
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any


def made_with(function: Callable[..., Any]) -> str | None:
    """A hash of the plain values (numbers, texts, None, tuples of these) that are settings of a function.

    A `partial`'s arguments; what a function or its decorator has from around it and does not bind anew (a counter
    is no setting); an object's attributes that its class is called with, as TRL's rewards with lengths keep them.
    None where there are none. A hash, since one may be a key of a server's, and manifests are shown to others.
    """
    found: dict[str, Any] = {}
    for name, value in _settings(function):
        if _is_plain(value):
            found.setdefault(name, value)
    text = repr(sorted(found.items(), key=lambda item: item[0]))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16] if found else None


def _settings(function: Any) -> Iterator[tuple[str, Any]]:
    while function is not None:
        if isinstance(function, functools.partial):
            yield from ((str(place), value) for place, value in enumerate(function.args))
            yield from function.keywords.items()
            function = function.func
            continue
        if isinstance(code := getattr(function, "__code__", None), types.CodeType):
            yield from _around(code, getattr(function, "__closure__", None) or ())
        one = getattr(function, "__self__", function)  # of a method, its object
        own = getattr(one, "__dict__", {})
        if not isinstance(one, type) and not inspect.isroutine(one) and not inspect.ismodule(one):
            yield from ((name, own[name]) for name in _arguments_of(type(one)) if name in own)
        function = getattr(function, "__wrapped__", None)


def _around(code: Any, cells: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    bound = {one.argval for one in dis.get_instructions(code) if one.opname == "STORE_DEREF"}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # nothing was bound to it yet
            continue
        if name not in bound:
            yield name, value


def _arguments_of(cls: type) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(cls).parameters)
    except (TypeError, ValueError):
        return ()


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float | str)
        or (isinstance(value, tuple) and all(map(_is_plain, value)))
    )
