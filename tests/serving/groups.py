"""Served requests as they come to the folder of groups, and a real reward that scores them."""

from collections.abc import Sequence
from typing import Any

from nonpareil.records import Group, ScoreRequest
from nonpareil.rewards import CombinedReward, FunctionReward
from nonpareil.serving.records import Answer, Drawn, DrawRequest, Scored

MODEL = {"path": "the-model"}
ENGINE = {"engine": "openai", "model": "the-model", "server": "vllm"}
CHAT = [{"role": "user", "content": "how long ?"}]


def length(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """The number of characters; of `null` there is none."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [None if text == "null" else float(len(text)) for text in texts]


def reward(weight: float = 1.0) -> CombinedReward:
    return CombinedReward([FunctionReward(length)], [weight])


def request(prompt: Any = "how long ?", best_of: int = 3, seed: int = 5, **fields: Any) -> DrawRequest:
    return DrawRequest(prompt, not isinstance(prompt, str), best_of, seed, {"max_tokens": 8, **fields}, 1e9)


def drawn(*texts: str, ids: bool = True, reasons: Sequence[str] | None = None) -> Drawn:
    answers = [
        Answer(
            text,
            reasons[i] if reasons else "stop",
            {"role": "assistant", "content": text},
            [5, 6 + i, 2] if ids else None,
            None,
            [-0.5, -0.25, -1.0] if ids else None,
        )
        for i, text in enumerate(texts)
    ]
    return Drawn(answers, 4, 3 * len(texts), "the-model", [1, 4] if ids else None)


def scored(prompt: Any, found: Drawn, by: CombinedReward) -> Scored:
    texts = [answer.text for answer in found.answers]
    group = Group("", prompt, [], texts, [[] for _ in texts], ["stop"] * len(texts), [])
    each = by.score_each(ScoreRequest.of([group]))
    by_name = {name: scores.values for name, scores in each.items()}
    failures = {name: scores.failures for name, scores in each.items()}
    return Scored(by_name, by.aggregate(by_name), failures[by.names[0]], failures)
