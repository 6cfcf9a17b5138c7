"""The records that pass between floors. Token ids are kept from the moment of drawing; nothing is re-tokenised."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, str]
PromptText = str | list[Message]
FinishReason = Literal["stop", "length"]


def prompt_id_of(prompt: PromptText, position: int) -> str:
    """A stable id: 16 hex digits of the prompt's hash, then its position, so equal prompts stay apart."""
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{position}"


@dataclass(frozen=True)
class Prompt:
    """One prompt as the user gave it, and as the model sees it."""

    prompt_id: str
    prompt: PromptText
    token_ids: list[int]
    """Empty where the engine takes text, a server without a tokenizer here."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Further dataset columns; handed to reward functions and kept in the group."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. Defaults are the policy's own distribution."""

    max_completion_length: int = 512
    """Most tokens a completion may have, the end token included."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    seed: int = 0

    @property
    def keeps_whole_vocabulary(self) -> bool:
        """Whether every token can be drawn, so that log-probs need no renormalising over a kept set."""
        return self.top_p >= 1.0 and self.top_k <= 0 and self.min_p <= 0.0


@dataclass(frozen=True)
class Draws:
    """The m completions drawn for one prompt."""

    completions: list[str]
    """Decoded, special tokens left out."""
    completion_token_ids: list[list[int]]
    """The ids that were sampled, the end token included when drawn; each is empty where a server gives none."""
    finish_reasons: list[FinishReason]
    logprobs: list[list[float]]
    """Of each sampled token under the sampling policy, nats, temperature and kept set applied; or empty."""
    prompt_token_ids: list[int] | None = None
    """What a server made of a prompt that was sent as text, where it says so."""


@dataclass
class Group:
    """One prompt, its m completions and their scores; one row on disk."""

    prompt_id: str
    prompt: PromptText
    prompt_token_ids: list[int]
    completions: list[str]
    completion_token_ids: list[list[int]]
    finish_reasons: list[FinishReason]
    logprobs: list[list[float]]
    rewards_by_name: dict[str, list[float | None]] = field(default_factory=dict)
    """One list of m a reward; None where it failed."""
    rewards: list[float | None] | None = None
    """The aggregate that selection and training use; None before scoring."""
    columns: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Prompt, draws: Draws) -> "Group":
        """The unscored group of a prompt and what was drawn for it."""
        return cls(
            prompt_id=prompt.prompt_id,
            prompt=prompt.prompt,
            prompt_token_ids=draws.prompt_token_ids or prompt.token_ids,
            completions=draws.completions,
            completion_token_ids=draws.completion_token_ids,
            finish_reasons=draws.finish_reasons,
            logprobs=draws.logprobs,
            columns=prompt.columns,
        )

    def __len__(self) -> int:
        return len(self.completions)


def identity_of(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How many prompts, and hashes of their ids with their tokens, and of their columns."""
    return {
        "count": len(prompts),
        "sha256": _short_hash([[prompt.prompt_id, prompt.token_ids] for prompt in prompts]),
        "columns_sha256": _short_hash([prompt.columns for prompt in prompts]),
    }


def _short_hash(value: Any) -> str:
    # Columns may hold dates and the like, which have a stable text.
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def prompt_of(group: Group) -> Prompt:
    """The prompt that a group was drawn for."""
    return Prompt(group.prompt_id, group.prompt, group.prompt_token_ids, group.columns)


@dataclass(frozen=True)
class ScoreRequest:
    """Completions to score, flattened over groups: every list has one entry a completion."""

    prompts: list[PromptText]
    completions: list[str | list[Message]]
    """Strings, or one assistant message in a list where the prompt is a conversation (TRL's convention)."""
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    group_places: list[tuple[int, int]] | None = None
    """The number of each completion's group and the size of that whole group; None where groups are unknown.
    Two groups may have equal prompts, so a reward that compares within a group reads its borders here."""

    def __len__(self) -> int:
        return len(self.completions)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "ScoreRequest":
        """Flatten groups, prompt by prompt; dataset columns are repeated for each completion."""
        prompts, completions, ids, places = [], [], [], []
        names = list(dict.fromkeys(name for group in groups for name in group.columns))
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, group in enumerate(groups):
            conversational = not isinstance(group.prompt, str)
            for text, token_ids in zip(group.completions, group.completion_token_ids, strict=True):
                prompts.append(group.prompt)
                completions.append([{"role": "assistant", "content": text}] if conversational else text)
                ids.append(token_ids)
                places.append((number, len(group)))
                for name in names:
                    columns[name].append(group.columns.get(name))
        return cls(prompts, completions, ids, columns, places)

    def select(self, rows: Sequence[int]) -> "ScoreRequest":
        """The request for some of the completions, in the order given."""
        return ScoreRequest(
            [self.prompts[i] for i in rows],
            [self.completions[i] for i in rows],
            [self.completion_ids[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            None if self.group_places is None else [self.group_places[i] for i in rows],
        )


@dataclass(frozen=True)
class Scores:
    """One reward a completion; None where the reward failed, with the reason beside it."""

    values: list[float | None]
    failures: list[str | None]
    """Why the value is None (None where it is not); counted in the manifest."""
