"""An engine that is given as it is, or as a function that makes it when it is needed."""

from collections.abc import Callable
from typing import cast

from nonpareil.engines.base import Engine


def made_engine(given: Engine | Callable[[], Engine]) -> Engine:
    """The engine itself, or what the function makes."""
    return cast(Engine, given) if hasattr(given, "draw") else cast(Callable[[], Engine], given)()


def release(engine: Engine) -> None:
    """Let go of what the engine holds beside its own memory, where it holds something (servers, processes)."""
    let_go = getattr(engine, "release", None)
    if let_go is not None:
        let_go()
