"""Floor 4: `DistillationTrainer`, its settings, exact resume.

The names below are imported when first used: `training.settings` needs neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonpareil.training.config import DistillationConfig
    from nonpareil.training.trainer import DistillationTrainer

__all__ = ["DistillationConfig", "DistillationTrainer"]

_MODULES = {
    "DistillationConfig": "nonpareil.training.config",
    "DistillationTrainer": "nonpareil.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'nonpareil.training' has no attribute {name!r}")
