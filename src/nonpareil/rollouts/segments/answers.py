"""What a search found, kept as groups of one: the answer and its cost, and from them rows in TRL's fields."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from nonpareil.records import Group, Message
from nonpareil.rollouts.segments.driver import Found

COLUMNS: dict[str, pa.DataType | None] = {
    "partial_rewards": pa.list_(pa.float64()),
    "num_candidates": pa.int64(),
    "tokens_drawn": pa.int64(),
    "tokens_scored": pa.int64(),
    "failures": None,
}
"""Of an answer, what a group does not have anyway, with its type on disk (None: as JSON)."""


def answer_of(found: Found) -> Group:
    """The answer alone; of a prompt without one any candidate, whose rewards are null.

    The dataset's columns stay with the dataset, by `prompt_id`.
    """
    whole, at = found.candidates, found.best or 0
    return Group(
        prompt_id=whole.prompt_id,
        prompt=whole.prompt,
        prompt_token_ids=whole.prompt_token_ids,
        completions=[whole.completions[at]],
        completion_token_ids=[whole.completion_token_ids[at]],
        finish_reasons=[whole.finish_reasons[at]],
        logprobs=[whole.logprobs[at]],
        rewards_by_name={name: [values[at]] for name, values in whole.rewards_by_name.items()},
        rewards=[(whole.rewards or [None])[at]],
        columns={
            "partial_rewards": found.partial_rewards[at],
            "num_candidates": len(whole),
            "tokens_drawn": found.tokens_drawn,
            "tokens_scored": found.tokens_scored,
            "failures": found.failures,
        },
        opening=whole.opening,
    )


def reward_of(answer: Group) -> float | None:
    """None where the prompt has no answer."""
    return (answer.rewards or [None])[0]


@dataclass
class SearchCounts:
    """Sums over prompts."""

    prompts: int = 0
    answers: int = 0
    """Prompts of which some candidate has a reward."""
    cut: int = 0
    """Answers that end at `max_completion_length`."""
    reward: float = 0.0
    """Of all answers together."""
    tokens_drawn: int = 0
    tokens_scored: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, answer: Group) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.tokens_drawn += answer.columns["tokens_drawn"]
        self.tokens_scored += answer.columns["tokens_scored"]
        self.failures.update(answer.columns["failures"])
        if (reward := reward_of(answer)) is not None:
            self.answers += 1
            self.cut += answer.finish_reasons[0] == "length"
            self.reward += reward

    def to_dict(self) -> dict[str, Any]:
        """The mean reward is None where there is no answer."""
        return {
            "prompts": self.prompts,
            "answers": self.answers,
            "cut": self.cut,
            "mean_reward": self.reward / self.answers if self.answers else None,
            "tokens_drawn": self.tokens_drawn,
            "tokens_scored": self.tokens_scored,
            "failed_rewards": dict(self.failures.most_common()),
        }


def answer_row(answer: Group) -> dict[str, Any]:
    """One answer with its rewards and its cost; of a prompt without an answer, what is not known is null."""
    cost, reward = answer.columns, reward_of(answer)
    known = reward is not None
    text = answer.completions[0]
    completion: str | list[Message] = (
        text if isinstance(answer.prompt, str) else [{"role": "assistant", "content": text}]
    )
    return {
        "prompt_id": answer.prompt_id,
        "prompt": answer.prompt,
        "completion": completion if known else None,
        "reward": reward,
        "rewards": {name: values[0] if known else None for name, values in answer.rewards_by_name.items()},
        "partial_rewards": cost["partial_rewards"] if known else None,
        "finish_reason": answer.finish_reasons[0] if known else None,
        "completion_token_ids": answer.completion_token_ids[0] if known else None,
        "num_candidates": cost["num_candidates"],
        "tokens_drawn": cost["tokens_drawn"],
        "tokens_scored": cost["tokens_scored"],
        "failed_rewards": None if known else "; ".join(cost["failures"]),
    }
