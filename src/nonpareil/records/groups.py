"""Prompts and their groups of completions."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from nonpareil.errors import DataError
from nonpareil.records.messages import Message
from nonpareil.settings import option

if TYPE_CHECKING:
    import numpy as np

SOURCE = "dataset_source"
"""The column in which a mixture of datasets says of which one a prompt is."""
PromptText = str | list[Message]
FinishReason = Literal["stop", "length"]


def text_of(completion: str | list[Message]) -> str:
    """A completion's own text, of a string or of its messages."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def prompt_id_of(prompt: PromptText, position: int, tools: list[dict[str, Any]] | None = None) -> str:
    """A stable id: 16 hex digits of a hash of prompt and tools, then its position, so equal prompts stay apart."""
    text = json.dumps([prompt, tools] if tools else prompt, sort_keys=True, ensure_ascii=False)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{position}"


def refuse_repeated(prompt_ids: Iterable[str], where: str) -> None:
    """Refuse prompts or groups of which two have one id: their draws would be the same, and counted twice.

    Raises:
        DataError: naming an id, and `where` they are.
    """
    counts = Counter(prompt_ids)
    if counts.total() > len(counts):
        prompt_id, count = counts.most_common(1)[0]
        raise DataError(
            f"{where}: {counts.total() - len(counts)} of {counts.total()} repeat another's prompt_id "
            f"({prompt_id!r} stands there {count} times), and would count more than once; remove the copies, or "
            "give each its own (records.prompt_id_of, from content and position)"
        )


@dataclass(frozen=True)
class Rendering:
    """What made token ids of a conversation, save the moment: a chat template may write the date."""

    tokenizer: str
    """A hash of all that it does with a text."""
    chat_template: str
    """A hash of its source."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """The template's arguments that the user gave."""
    tools: bool = False
    """Whether the template was given the dataset's column `tools`; manifests say so where it was."""

    def describe(self) -> dict[str, Any]:
        """For manifests and checkpoints."""
        return {key: value for key, value in asdict(self).items() if key != "tools" or value}


@dataclass(frozen=True)
class Prompt:
    """One prompt as the user gave it, and as the model sees it."""

    prompt_id: str
    prompt: PromptText
    token_ids: list[int]
    """Empty where the engine takes text, a server without a tokenizer here."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Further dataset columns; handed to reward functions and kept in the group."""
    rendering: Rendering | None = None
    """Of a conversation that `tokenize_prompts` rendered."""
    opening: str | None = None
    """What of the answer the prompt writes itself (see `rollouts.openings`); None where that is not known."""


def prompt_identity(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Which prompts these are and how they are rendered, the same on every day.

    The token ids are not in it, which differ from day to day where a chat template writes the date; tokenizer,
    template and its arguments are, of conversations that `rollouts.tokenize_prompts` rendered.
    """
    renderings = [prompt.rendering.describe() for prompt in prompts if prompt.rendering is not None]
    distinct = [one for i, one in enumerate(renderings) if i == 0 or one != renderings[i - 1]]
    return {
        "count": len(prompts),
        "sha256": _sha256([[prompt.prompt_id, prompt.prompt] for prompt in prompts]),
        "columns_sha256": _sha256([prompt.columns for prompt in prompts]),
        **_sources(prompts),
        **({"rendering": distinct[0] if len(distinct) == 1 else distinct} if distinct else {}),
    }


def _sources(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How many prompts each dataset of a mixture gave; nothing of other prompts."""
    named = [prompt.columns.get(SOURCE) for prompt in prompts]
    known = named and all(isinstance(name, str) for name in named)
    return {"sources": dict(Counter(named))} if known else {}


def _sha256(value: Any) -> str:
    # Columns may hold dates and the like, which have a stable text.
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. Defaults are the policy's own distribution."""

    max_completion_length: int = option(
        512, "Most tokens a completion may have, the end token included.", at_least=1
    )
    temperature: float = option(1.0, "Divides the logits.", above=0, why="best-of-N needs draws that differ")
    top_p: float = option(1.0, "Keep the likeliest tokens up to this mass.", above=0, at_most=1)
    top_k: int = option(0, "Keep this many tokens; 0 keeps the whole vocabulary.", at_least=0)
    min_p: float = option(0.0, "Keep tokens at least this share of the likeliest one.", at_least=0, below=1)
    seed: int = option(0, "The same seed draws the same completions.")
    repetition_penalty: float = option(
        1.0,
        "Divides positive logits, and multiplies others, of tokens that prompt or completion have already.",
        above=0,
        why="1 leaves all as they are",
    )
    stop: tuple[str, ...] = option(
        (), "Texts that end a completion as soon as it has one; they are not in it."
    )

    def described(self) -> dict[str, Any]:
        """By name, as manifests keep it: what was not known to earlier versions only where it is set."""
        found = asdict(self)
        return {
            k: v for k, v in found.items() if k not in ("repetition_penalty", "stop") or v not in (1.0, ())
        }

    @property
    def keeps_whole_vocabulary(self) -> bool:
        """Whether every token can be drawn, so that log-probs need no renormalising over a kept set."""
        return self.top_p >= 1.0 and self.top_k <= 0 and self.min_p <= 0.0


@dataclass(frozen=True)
class Draws:
    """The m completions drawn for one prompt."""

    completions: list[str]
    """The text behind the prompt's, special tokens included but for the end; see `engines.decoding`."""
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
    opening: str | None = None
    """As in `Prompt`."""

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
            opening=prompt.opening,
        )

    def __len__(self) -> int:
        return len(self.completions)

    def joined(self, more: "Group") -> "Group":
        """With another group of the same prompt behind this one's completions; a reward that one lacks is None."""
        names = dict.fromkeys((*self.rewards_by_name, *more.rewards_by_name))
        rewards = None
        if self.rewards is not None or more.rewards is not None:
            rewards = [*(self.rewards or [None] * len(self)), *(more.rewards or [None] * len(more))]
        return replace(
            self,
            completions=self.completions + more.completions,
            completion_token_ids=self.completion_token_ids + more.completion_token_ids,
            finish_reasons=self.finish_reasons + more.finish_reasons,
            logprobs=self.logprobs + more.logprobs,
            rewards_by_name={
                name: self.rewards_by_name.get(name, [None] * len(self))
                + more.rewards_by_name.get(name, [None] * len(more))
                for name in names
            },
            rewards=rewards,
        )


@dataclass(frozen=True)
class GroupNumbers:
    """b scored groups of m completions each, as far as a best-of-N curve reads them: no list per completion."""

    prompt_ids: list[str]
    rewards: "np.ndarray"
    """[b, m], float64; NaN where the reward failed."""
    lengths: "np.ndarray"
    """Tokens of each completion [b, m], float64; NaN where its ids are not known."""
    num_unique: "np.ndarray"
    """Different completions of each group [b]: by token ids, or by text where those of one are not known."""
    sources: "list[object]" = field(default_factory=list)
    """What each prompt's column `dataset_source` holds; empty where the groups have no such column."""

    def __len__(self) -> int:
        return len(self.prompt_ids)


def prompt_of(group: Group) -> Prompt:
    """The prompt that a group was drawn for."""
    return Prompt(group.prompt_id, group.prompt, group.prompt_token_ids, group.columns, opening=group.opening)
