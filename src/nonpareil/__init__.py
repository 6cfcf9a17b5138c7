"""Nonpareil: one sample as good as the best of N.

The names below are imported when first used, so that `import nonpareil` is quick. Each command is a function, see
`nonpareil.api`: `nonpareil.sample(model_name_or_path=..., dataset_name=..., reward_funcs=...)`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_COMMANDS = (
    *("sample", "search", "curve", "distill", "evaluate", "compare"),
    *("value", "make_credits", "tilt", "interpolate", "export", "join", "serve", "view"),
)
"""`make_credits` is the command `credits`: `nonpareil.credits` is the module of what it makes."""
_PUBLIC = {
    **dict.fromkeys(_COMMANDS, "nonpareil.api"),
    "DistillationConfig": "nonpareil.training",
    "DistillationTrainer": "nonpareil.training",
    "TransformersEngine": "nonpareil.engines.transformers",
    "SamplingParams": "nonpareil.records",
    "load_rewards": "nonpareil.rewards",
    "load_prompts": "nonpareil.rollouts.prompts",
    "tokenize_prompts": "nonpareil.rollouts.prompts",
    "draw_and_score": "nonpareil.rollouts.run",
    "read_groups": "nonpareil.rollouts.reading",
    "best_of_n_report": "nonpareil.evaluation",
    "evaluate_groups": "nonpareil.evaluation",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'nonpareil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
