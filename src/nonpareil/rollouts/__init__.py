"""Groups drawn, scored and kept: prompts in, Parquet shards out, selections and exports from them.

What loads models or datasets is imported when first used: reading groups needs neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from nonpareil.rollouts.export import ExportReport, export
from nonpareil.rollouts.progress import Progress, ProgressBar
from nonpareil.rollouts.reading import read_groups
from nonpareil.rollouts.select import best, worst
from nonpareil.rollouts.store import read_shard, write_shard
from nonpareil.rollouts.vbon_lines import read_vbon

if TYPE_CHECKING:
    from nonpareil.rollouts.prompts import load_prompts, tokenize_prompts
    from nonpareil.rollouts.run import RolloutResult, draw_and_score

__all__ = [
    "ExportReport",
    "Progress",
    "ProgressBar",
    "RolloutResult",
    "best",
    "draw_and_score",
    "export",
    "load_prompts",
    "read_groups",
    "read_shard",
    "read_vbon",
    "tokenize_prompts",
    "worst",
    "write_shard",
]

_MODULES = {
    "RolloutResult": "nonpareil.rollouts.run",
    "draw_and_score": "nonpareil.rollouts.run",
    "load_prompts": "nonpareil.rollouts.prompts",
    "tokenize_prompts": "nonpareil.rollouts.prompts",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'nonpareil.rollouts' has no attribute {name!r}")
