"""An engine and rewards that are given as they are, or as a function that makes them when they are needed."""

from collections.abc import Callable
from typing import cast

from nonpareil.engines.base import Engine
from nonpareil.rewards.combine import CombinedReward

GivenEngine = Engine | Callable[[], Engine]
GivenReward = CombinedReward | Callable[[], CombinedReward]


def made_engine(given: GivenEngine) -> Engine:
    """The engine itself, or what the function makes."""
    return cast(Engine, given) if hasattr(given, "draw") else cast(Callable[[], Engine], given)()


def made_reward(given: GivenReward) -> CombinedReward:
    """The rewards themselves, or what the function makes."""
    return given if isinstance(given, CombinedReward) else given()


def release(engine: Engine) -> None:
    """Let go of what the engine holds beside its own memory, where it holds something (servers, processes)."""
    let_go = getattr(engine, "release", None)
    if let_go is not None:
        let_go()
