"""The log-ratios of an evaluation on disk: by prompt and completion, so that policies are compared draw by draw."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from nonpareil.errors import DataError
from nonpareil.evaluation.groups import rewards_of
from nonpareil.files import whole_file
from nonpareil.records import Group

LOG_RATIOS = "log_ratios.parquet"
_SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "completions_sha256": pa.string(),
        "log_ratios": pa.list_(pa.float32()),
        "rewards": pa.list_(pa.float64()),
    }
)


@dataclass(frozen=True, eq=False)
class LogRatios:
    """A policy on the reference's completions, in the order of prompt ids."""

    prompt_ids: tuple[str, ...]
    completions: tuple[str, ...]
    """What tells each prompt's completions, by their token ids, from other draws."""
    log_ratio: Float[Tensor, "b m"]
    """log policy - log reference, summed over the completion, nats; float64."""
    rewards: Float[Tensor, "b m"]
    """NaN where the reward failed."""

    def same_draws(self, other: "LogRatios") -> bool:
        """Whether both are of the same completions of the same prompts, with the same rewards."""
        return (
            (self.prompt_ids, self.completions) == (other.prompt_ids, other.completions)
            and self.rewards.shape == other.rewards.shape
            and torch.equal(self.rewards.isnan(), other.rewards.isnan())
            and torch.equal(self.rewards.nan_to_num(nan=0.0), other.rewards.nan_to_num(nan=0.0))
        )


def write_log_ratios(folder: Path, groups: Sequence[Group], log_ratio: Float[Tensor, "b m"]) -> Path:
    """One row per prompt, its completions in the order of its group; the file is replaced in one step."""
    order = sorted(range(len(groups)), key=lambda row: groups[row].prompt_id)
    rewards = rewards_of(groups)
    table = pa.table(
        {
            "prompt_id": [groups[row].prompt_id for row in order],
            "completions_sha256": [_sha256(groups[row].completion_token_ids) for row in order],
            "log_ratios": [log_ratio[row].tolist() for row in order],
            "rewards": [[None if math.isnan(x) else x for x in rewards[row].tolist()] for row in order],
        },
        schema=_SCHEMA,
    )
    path = folder / LOG_RATIOS
    with whole_file(path) as stream:
        pq.write_table(table, stream)
    return path


def read_log_ratios(folder: Path) -> LogRatios:
    """What `write_log_ratios` wrote.

    Raises:
        DataError: there is no such file, or none of ours, or a column that is not one number per completion.
    """
    path = folder / LOG_RATIOS
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__})") from error
    if not table.schema.equals(_SCHEMA):
        raise DataError(f"{path} has other columns than {', '.join(_SCHEMA.names)}")
    columns = table.to_pydict()
    for name in ("prompt_id", "completions_sha256"):
        if None in columns[name]:
            raise DataError(f"{path}: {name} lacks a value; evaluate the policy again")
    log_ratio, rewards = (_rectangle(columns[name], name, path) for name in ("log_ratios", "rewards"))
    if log_ratio.shape != rewards.shape:
        raise DataError(
            f"{path}: log_ratios has {log_ratio.shape[1]} completions per prompt, and rewards has "
            f"{rewards.shape[1]}; evaluate the policy again"
        )
    for name, wrong in (
        ("log_ratios", ~rewards.isnan() & ~log_ratio.isfinite()),
        ("rewards", rewards.isinf()),
    ):
        if wrong.any():
            row = int(wrong.any(dim=1).nonzero()[0])
            raise DataError(
                f"{path}: {name} has no finite number for a completion of prompt "
                f"{columns['prompt_id'][row]!r} that was scored; evaluate the policy again"
            )
    return LogRatios(tuple(columns["prompt_id"]), tuple(columns["completions_sha256"]), log_ratio, rewards)


def _rectangle(rows: list[list[float | None] | None], name: str, path: Path) -> Float[Tensor, "b m"]:
    """A column with as many numbers for each prompt; NaN where one is null."""
    if None in rows or len({len(row or ()) for row in rows}) > 1:
        raise DataError(
            f"{path}: {name} has not the same number of completions for each prompt; evaluate the policy again"
        )
    values = [[math.nan if x is None else x for x in row or ()] for row in rows]
    return torch.tensor(values, dtype=torch.float64).reshape(len(rows), -1 if any(values) else 0)


def _sha256(completion_token_ids: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(ids) for ids in completion_token_ids]).encode()).hexdigest()
