"""What is scored, and what a reward gives: numbers, nulls with their reasons, and words for a log."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nonpareil.records.groups import FinishReason, Group, PromptText
from nonpareil.records.messages import Message


@dataclass(frozen=True)
class ScoreRequest:
    """Completions to score, flattened over groups: every list has one entry per completion."""

    prompts: list[PromptText]
    completions: list[str | list[Message]]
    """Strings, or one assistant message in a list where the prompt is a conversation (TRL's convention)."""
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    group_places: list[tuple[int, int]] | None = None
    """The number of each completion's group and the size of that whole group; None where groups are unknown.
    Two groups may have equal prompts, so a reward that compares within a group reads its borders here."""
    openings: list[str | None] | None = None
    """What of each answer its prompt wrote already (see `rollouts.openings`), None where that is not known."""
    finish_reasons: list[FinishReason] | None = None
    trainer_state: Any = None
    """transformers' `TrainerState` where a training asks; None where there is no trainer."""

    def __len__(self) -> int:
        return len(self.completions)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "ScoreRequest":
        """Flatten groups, prompt by prompt; dataset columns are repeated for each completion."""
        prompts, completions, ids, places, openings = [], [], [], [], []
        finish_reasons = [reason for group in groups for reason in group.finish_reasons]
        names = list(dict.fromkeys(name for group in groups for name in group.columns))
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, group in enumerate(groups):
            conversational = not isinstance(group.prompt, str)
            for text, token_ids in zip(group.completions, group.completion_token_ids, strict=True):
                prompts.append(group.prompt)
                completions.append([{"role": "assistant", "content": text}] if conversational else text)
                ids.append(token_ids)
                places.append((number, len(group)))
                openings.append(group.opening)
                for name in names:
                    columns[name].append(group.columns.get(name))
        return cls(prompts, completions, ids, columns, places, openings, finish_reasons)

    def copy(self) -> "ScoreRequest":
        """Lists of its own, down to each message and column's value: what is done to them touches no group."""
        return ScoreRequest(
            [_own(prompt) for prompt in self.prompts],
            [_own(completion) for completion in self.completions],
            [list(ids) for ids in self.completion_ids],
            {name: [_own(value) for value in values] for name, values in self.columns.items()},
            None if self.group_places is None else list(self.group_places),
            None if self.openings is None else list(self.openings),
            None if self.finish_reasons is None else list(self.finish_reasons),
            self.trainer_state,
        )

    def select(self, rows: Sequence[int]) -> "ScoreRequest":
        """The request for some of the completions, in the order given."""
        return ScoreRequest(
            [self.prompts[i] for i in rows],
            [self.completions[i] for i in rows],
            [self.completion_ids[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            None if self.group_places is None else [self.group_places[i] for i in rows],
            None if self.openings is None else [self.openings[i] for i in rows],
            None if self.finish_reasons is None else [self.finish_reasons[i] for i in rows],
            self.trainer_state,
        )


def _own(value: Any) -> Any:
    """A copy without shared parts: a prompt's messages, repeated for its completions, are copied for each."""
    return value if isinstance(value, str) else copy.deepcopy(value)


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
