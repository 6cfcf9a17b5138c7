"""Completions as rewards read them: with the policy's special tokens in their text, or without."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nonpareil.records import Message, ScoreRequest


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts of a tokenizer's special tokens, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


def without_tokens(request: ScoreRequest, tokens: Sequence[str]) -> ScoreRequest:
    """The request without these texts in completions and openings; the ids stay, and prompts are the user's own."""
    if not tokens:
        return request
    pattern = re.compile("|".join(map(re.escape, tokens)))

    def shortened(completion: str | list[Message]) -> str | list[Message]:
        if isinstance(completion, str):
            return pattern.sub("", completion)
        return [{**message, "content": pattern.sub("", message["content"])} for message in completion]

    openings = request.openings and [one and pattern.sub("", one) for one in request.openings]
    return replace(request, completions=[shortened(one) for one in request.completions], openings=openings)
