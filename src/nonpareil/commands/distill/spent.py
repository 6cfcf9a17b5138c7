"""What a distillation drew and computed before its training: beside each stage, and counted in its spent.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonpareil.commands.distill.folder import MADE_BEFORE
from nonpareil.commands.value.spent import SPENT, add_spent, read_spent
from nonpareil.files import write_json
from nonpareil.folders import writing
from nonpareil.records import Group

POOL = "groups"
"""Its folder in output_dir."""


def spent_before(model: Path) -> dict[str, Any]:
    """What pool, value and credits of a run took, by stage; those that it did not make are left out."""
    found = {stage: read_spent(model / stage) for stage in MADE_BEFORE}
    return {stage: spent for stage, spent in found.items() if spent}


def add_to_pool(folder: Path, seconds: float, *, anew: bool) -> None:
    """Add seconds of drawing and scoring; `anew`: they are the first."""
    from nonpareil.rollouts.folder import OWNER

    with writing(folder, OWNER):
        if anew:
            write_json(folder / SPENT, {})
        add_spent(folder, seconds)


def count_pool(output_dir: Path, groups: Sequence[Group]) -> None:
    """Say how much the pool is, once it is whole: tokens with the prompts, once per completion."""
    from nonpareil.rollouts.folder import OWNER

    tokens = sum(len(group) * len(group.prompt_token_ids) for group in groups)
    tokens += sum(len(ids) for group in groups for ids in group.completion_token_ids)
    with writing(output_dir / POOL, OWNER):
        add_spent(output_dir / POOL, 0.0, completions=sum(map(len, groups)), tokens=tokens)


def count_stages(output_dir: Path, *, drew_pool: bool, fitted_value: bool) -> None:
    """Put the stages into spent.json behind a training, and count the pool among what was drawn.

    `seconds` there stay those of the training's steps; each stage has its own in `made_before`.
    """
    made = {POOL: drew_pool, "value": fitted_value, "credits": True}
    stages = {stage: spent for stage, spent in spent_before(output_dir).items() if made[stage]}
    spent, pool = read_spent(output_dir), stages.get(POOL, {})
    drawn = {
        "completions_drawn": spent.get("completions_drawn", 0) + pool.get("completions", 0),
        "tokens_drawn": spent.get("tokens_drawn", 0) + pool.get("tokens", 0),
    }
    write_json(output_dir / SPENT, {**spent, **drawn, "made_before": stages})
