"""Groups drawn, scored and kept: prompts in, Parquet shards out, selections and exports from them."""

from nonpareil.rollouts.export import ExportReport, export
from nonpareil.rollouts.progress import Progress, ProgressBar
from nonpareil.rollouts.prompts import load_prompts, tokenize_prompts
from nonpareil.rollouts.reading import read_groups
from nonpareil.rollouts.run import RolloutResult, draw_and_score
from nonpareil.rollouts.select import best, worst
from nonpareil.rollouts.store import read_shard, write_shard
from nonpareil.rollouts.vbon_lines import read_vbon

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
