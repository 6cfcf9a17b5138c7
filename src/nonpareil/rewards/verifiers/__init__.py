"""Rewards that verify, by name: a completion is held against what its row says is right. No model is asked."""

import importlib
from typing import Any

_PUBLIC = {
    "CannotTell": "nonpareil.rewards.verifiers.base",
    "LimitedVerifier": "nonpareil.rewards.verifiers.limited",
    "Row": "nonpareil.rewards.verifiers.base",
    "reasoning_gym_rows": "nonpareil.rewards.verifiers.gym_rows",
    "Verifier": "nonpareil.rewards.verifiers.base",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
