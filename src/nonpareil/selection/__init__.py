"""Which of a prompt's completions to answer with: each rule as a law, rewards of a group to probabilities.

A law, not an index: so what a rule is worth, how far it goes from one draw and what it costs are exact sums over
stored groups, and a rule is proven by enumeration. `written` reads what a user wrote and imports no torch.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Candidates": "nonpareil.selection.candidates",
    "RULES": "nonpareil.selection.rules",
    "Rule": "nonpareil.selection.rule",
    "best_first": "nonpareil.selection.choice",
    "candidates_of": "nonpareil.selection.candidates",
    "choose": "nonpareil.selection.choice",
    "likeliest": "nonpareil.selection.choice",
    "parse_rule": "nonpareil.selection.written",
    "parse_rules": "nonpareil.selection.written",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
