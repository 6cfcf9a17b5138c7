"""What a reward gives: a number per completion, or a null with its reason, and what it says for a log."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Logged:
    """What a reward says for a training's log besides its scores (TRL's `log_extra` and `log_metric`)."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Of the table of completions: one value per completion, as Parquet takes it; None where there is none."""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """Each value that was logged; the step has their mean."""


@dataclass(frozen=True)
class Scores:
    """One reward per completion; None where the reward failed, with the reason beside it."""

    values: list[float | None]
    failures: list[str | None]
    """Why the value is None (None where it is not); counted in the manifest."""
    logged: Logged = field(default_factory=Logged)

    def only_numbers(self) -> "Scores":
        """The same, with None and its reason for what is no reward: NaN, infinite, or beyond `MOST_REWARD`."""
        reasons = [_no_reward(value) for value in self.values]
        return Scores(
            [None if v is None or why else float(v) for v, why in zip(self.values, reasons, strict=True)],
            [why or failure for why, failure in zip(reasons, self.failures, strict=True)],
            self.logged,
        )


MOST_REWARD = 1e150
"""Of a reward's size: the square of a larger one, and so its spread over a group, is infinite in float64."""


def _no_reward(value: float | None) -> str | None:
    if value is None or abs(value) <= MOST_REWARD:
        return None
    if not math.isfinite(value):
        return f"returned {value}"
    return f"{value!r} is beyond {MOST_REWARD:g} in size, and a group of such has no spread; scale the reward"
