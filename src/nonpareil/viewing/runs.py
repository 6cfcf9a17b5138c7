"""A training run's folder, also while it is trained: metrics over steps, and completions of logged steps."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nonpareil.errors import ConfigError, DataError
from nonpareil.terminal import reason_of

METRICS_FILE, COMPLETIONS_FOLDER = "metrics.jsonl", "completions"
"""As `training` writes them; importing it would load torch."""
FIRST = (
    "reward",
    "kl_to_anchor",
    "kl",
    "entropy",
    "loss",
    "completions/mean_length",
    "grad_norm",
    "learning_rate",
)
"""Charts that stand first, where a run has them."""
_STEP = re.compile(r"completions_(\d+)\.parquet")
_OWN = ("step", "prompt", "completion", "drawn_by", "advantage")


@dataclass(frozen=True)
class Metrics:
    """Every number that was logged, over steps."""

    by_name: dict[str, list[tuple[float, float | None]]]
    """(step, value) in the order logged; None where it was no number."""
    last_step: int | None = None
    unread: int = 0
    """Lines that are no metrics: a kill cuts the last one short."""

    def names(self) -> list[str]:
        """The names, those that matter most first."""
        first = [name for name in FIRST if name in self.by_name]
        return first + sorted(name for name in self.by_name if name not in first)


@dataclass(frozen=True)
class Sample:
    """One completion of a step."""

    text: str
    drawn_by: str
    rewards: dict[str, Any] = field(default_factory=dict)
    """Rewards, and what rewards logged beside them."""
    advantage: float | None = None


@dataclass(frozen=True)
class Samples:
    """A prompt's completions in a step."""

    prompt: Any
    completions: list[Sample]


def check_run(path: str | Path, option: str = "runs") -> Path:
    """The folder of a run that a user named.

    Raises:
        ConfigError: nothing there, or no run.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        raise ConfigError(f"{option}={str(path)!r} is no folder; give the output_dir of `nonpareil distill`")
    if not (place / METRICS_FILE).is_file() and not (place / COMPLETIONS_FOLDER).is_dir():
        raise ConfigError(
            f"{option}={str(path)!r} is no training run: no {METRICS_FILE} and no {COMPLETIONS_FOLDER}/ is in it; "
            "give the output_dir of `nonpareil distill`"
        )
    return place


def stamp_of_run(folder: Path) -> str:
    """Changes whenever there is more to see."""
    path = folder / METRICS_FILE
    size = path.stat().st_size if path.is_file() else 0
    return f"{size}.{len(steps_of(folder))}"


def metrics_of(folder: Path) -> Metrics:
    """What was logged so far; nothing where there is no file yet."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return Metrics({})
    by_name: dict[str, list[tuple[float, float | None]]] = {}
    last, unread = None, 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        step, logged = _logged(line)
        if step is None:
            unread += 1
            continue
        last = step
        for name, value in logged.items():
            if name not in ("step", "epoch") and (value is None or type(value) in (int, float)):
                by_name.setdefault(name, []).append((float(step), _finite(value)))
    told = {name: points for name, points in by_name.items() if any(value is not None for _, value in points)}
    return Metrics(told, last, unread)


def _logged(line: str) -> tuple[int | None, dict[str, Any]]:
    try:
        logged = json.loads(line)
    except (ValueError, RecursionError):
        return None, {}
    step = logged.get("step") if isinstance(logged, dict) else None
    return (step, logged) if type(step) is int and abs(step) < 2**53 else (None, {})


def _finite(value: int | float | None) -> float | None:
    if value is None:
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def steps_of(folder: Path) -> list[int]:
    """The steps whose completions are there."""
    names = (folder / COMPLETIONS_FOLDER).glob("completions_*.parquet")
    return sorted(int(found[1]) for path in names if (found := _STEP.fullmatch(path.name)))


def samples_of(folder: Path, step: int) -> list[Samples]:
    """The completions of a step, by prompt in the order trained on.

    Raises:
        DataError: there are none of that step, or their file is damaged.
    """
    names = (folder / COMPLETIONS_FOLDER).glob("completions_*.parquet")
    paths = [path for path in names if (found := _STEP.fullmatch(path.name)) and int(found[1]) == step]
    if not paths:
        raise DataError(f"no completions of step {step} are there")
    try:
        with pq.ParquetFile(paths[0]) as file:
            rows = file.read(use_threads=False).to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{paths[0]} cannot be read: {reason_of(error)}") from error
    by_prompt: dict[str, Samples] = {}
    for row in rows:
        key = json.dumps(row.get("prompt"), sort_keys=True, default=str)
        samples = by_prompt.setdefault(key, Samples(row.get("prompt"), []))
        others = {name: value for name, value in row.items() if name not in _OWN}
        samples.completions.append(
            Sample(
                str(row.get("completion") or ""), str(row.get("drawn_by") or ""), others, row.get("advantage")
            )
        )
    return list(by_prompt.values())
