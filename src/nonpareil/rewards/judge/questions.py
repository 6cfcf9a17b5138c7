"""What a pairwise judge is asked, and how its answer is read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.records import PromptText, turn_text
from nonpareil.rewards.judge.cache import question_key

TEMPLATE = """Two answers were given to the same prompt. Which one is better?

[The prompt]
{prompt}
[End of the prompt]

[Answer A]
{a}
[End of answer A]

[Answer B]
{b}
[End of answer B]

The order of the answers says nothing about them, and a longer answer is not better for its length. Reply
with one word and nothing else: A if answer A is better, B if answer B is better, tie if neither is."""

PLACEHOLDERS = ("prompt", "a", "b")
ANSWER_TOKENS = 16
"""Most tokens of an answer: a verdict, not its reasons."""
VERDICT = re.compile(r"[\s\"'*`_\[({<]*(a|b|tie)[\"'*`_\])}>.:!]*[ \t\r]*(?:\n|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One call: which of two different answers to a prompt is better."""

    prompt: str
    a: str
    b: str

    def filled(self, template: str) -> str:
        """The template with this question's texts, in one pass: an answer may hold "{b}" too."""
        return re.sub(r"\{(prompt|a|b)\}", lambda found: getattr(self, found.group(1)), template)

    def payload(
        self, model: str, template: str, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The request for a chat completion; arguments of the chat template as vLLM and SGLang take them."""
        further = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
        return {
            "model": model,
            "messages": [{"role": "user", "content": self.filled(template)}],
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
            **further,
        }

    def key(self, model: str, template: str, chat_template_kwargs: Mapping[str, Any] | None = None) -> str:
        """A hash of all that decides the answer."""
        settings = f"temperature 0, {ANSWER_TOKENS} tokens"
        if chat_template_kwargs:
            settings += f", {json.dumps(chat_template_kwargs, sort_keys=True)}"
        return question_key(model, settings, template, self.prompt, self.a, self.b)


def both_orders(prompt: str, x: str, y: str) -> list[Question]:
    """The two calls of a pair; none where the two are equal."""
    return [] if x == y else [Question(prompt, x, y), Question(prompt, y, x)]


def read_verdict(answer: str) -> float | None:
    """What answer A has of it: 1, 1/2 (tie) or 0; None where the answer does not begin with a verdict.

    The verdict is the first word, alone on its line but for marks (`A`, `**b**`, `[[A]]`, `Tie.`). What a sentence
    that begins with it says ("A: 3/10, B: 9/10", "A's answer is worse") is not guessed at.
    """
    found = VERDICT.match(answer)
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[found.group(1).lower()] if found else None


def plain_text(prompt: PromptText) -> str:
    """A prompt as a judge reads it; a conversation one turn a paragraph, each with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(turn_text(message) for message in prompt)


def content_of(answer: Any) -> str | None:
    """The text of the one choice of a chat completion; None where the answer does not hold just one."""
    try:
        (choice,) = answer["choices"]
        content = choice["message"]["content"]
    except (KeyError, TypeError, ValueError):
        return None
    return content if isinstance(content, str) else None


def check_template(template: str) -> None:
    """Refuse a template without its places.

    Raises:
        ConfigError: naming them.
    """
    missing = [name for name in PLACEHOLDERS if "{" + name + "}" not in template]
    if missing:
        raise ConfigError(
            f"judge_template lacks {', '.join('{' + name + '}' for name in missing)}; it must hold "
            "{prompt}, {a} and {b}"
        )
