"""Engines and rewards that are given as they are, or as a function that makes them when they are needed."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


def resolve(given: T | Callable[[], T], method: str) -> T:
    """The thing itself, which has `method`, or what the function makes."""
    return cast(T, given) if hasattr(given, method) else cast(Callable[[], T], given)()


def release(made: Any) -> None:
    """Let it go, where it can be."""
    release = getattr(made, "release", None)
    if release is not None:
        release()
