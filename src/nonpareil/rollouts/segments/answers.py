"""What a search found, as rows of a file: an answer a prompt, in the fields of TRL's prompt and completion."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nonpareil.records import Message
from nonpareil.rollouts.segments.driver import Found


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

    def add(self, found: Found) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.tokens_drawn += found.tokens_drawn
        self.tokens_scored += found.tokens_scored
        self.failures.update(found.failures)
        if found.best is not None and found.candidates.rewards is not None:
            self.answers += 1
            self.cut += found.candidates.finish_reasons[found.best] == "length"
            self.reward += found.candidates.rewards[found.best] or 0.0

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


def answer_rows(found: Iterable[Found], counts: SearchCounts) -> Iterator[dict[str, Any]]:
    """A row a prompt, counted as it is given; of a prompt without an answer, what is not known is null."""
    for one in found:
        counts.add(one)
        yield answer_row(one)


def answer_row(found: Found) -> dict[str, Any]:
    """One answer with its rewards and its cost; dataset columns stay with the dataset, by `prompt_id`."""
    group, place = found.candidates, found.best
    known = place is not None
    at = place or 0
    text = group.completions[at]
    completion: str | list[Message] = (
        text if isinstance(group.prompt, str) else [{"role": "assistant", "content": text}]
    )
    return {
        "prompt_id": group.prompt_id,
        "prompt": group.prompt,
        "completion": completion if known else None,
        "reward": (group.rewards or [None])[at] if known else None,
        "rewards": {name: values[at] if known else None for name, values in group.rewards_by_name.items()},
        "partial_rewards": found.partial_rewards[at] if known else None,
        "finish_reason": group.finish_reasons[at] if known else None,
        "completion_token_ids": group.completion_token_ids[at] if known else None,
        "num_candidates": len(group),
        "tokens_drawn": found.tokens_drawn,
        "tokens_scored": found.tokens_scored,
        "failed_rewards": None if known else "; ".join(found.failures),
    }
