"""Answers as the protocol writes them: one object, or a stream of chunks that says the same."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nonpareil.serving.body import Asked
from nonpareil.serving.records import Answer, Drawn, Scored
from nonpareil.serving.rounds import Stop
from nonpareil.terminal import printable

OWNER = "nonpareil"
"""What the server calls itself in its list of models."""


@dataclass(frozen=True)
class Reply:
    """A request's answers, chosen."""

    asked: Asked
    drawn: Drawn
    scored: Scored
    chosen: list[int]
    """Places among those drawn, best first."""
    fallback: str | None = None
    """What they were chosen by, where no answer has a reward."""
    stop: Stop | None = None
    """What ended the rounds, where they were drawn in rounds."""

    @property
    def answers(self) -> list[Answer]:
        """Those that are returned."""
        return [self.drawn.answers[place] for place in self.chosen]

    def usage(self) -> dict[str, int]:
        """Every token that was drawn, returned or not; the prompt's once."""
        prompt, completion = self.drawn.prompt_tokens, self.drawn.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def block(self) -> dict[str, Any]:
        """What is ours beside the protocol: how the answers were chosen."""
        several = len(self.scored.by_name) > 1
        failed = [reason for reason in self.scored.failures if reason is not None]
        return {
            "best_of": self.asked.request.best_of,
            "rule": str(self.asked.rule),
            "seed": self.asked.request.seed,
            "chosen": self.chosen,
            "scores": self.scored.rewards,
            **({"rewards": self.scored.by_name} if several else {}),
            **({"null_reasons": self.scored.failures} if failed else {}),
            **({"fallback": self.fallback} if self.fallback else {}),
            **({} if self.stop is None else self._rounds(self.stop)),
        }

    def _rounds(self, stop: Stop) -> dict[str, Any]:
        goal = self.asked.goal
        by_quantile = goal is not None and goal.calibration is not None
        return {
            "draws": len(self.drawn.answers),
            "max_draws": self.asked.request.max_draws,
            **({goal.field: goal.at} if goal else {}),
            **({"quantiles": goal.standings(self.scored.rewards)} if goal and by_quantile else {}),
            "stopped": stop.why,
            **({"stopped_by": printable(stop.words)} if stop.words else {}),
        }

    def whole(self) -> dict[str, Any]:
        """The object of a request without `stream`."""
        chat = self.asked.request.chat
        return {
            **_head(chat, "chat.completion" if chat else "text_completion", self.drawn.model),
            "choices": [_choice(chat, place, answer) for place, answer in enumerate(self.answers)],
            "usage": self.usage(),
            "nonpareil": self.block(),
        }

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The same as a stream: of each answer its role, its content, its end; then the usage, where asked for."""
        chat = self.asked.request.chat
        head = _head(chat, "chat.completion.chunk" if chat else "text_completion", self.drawn.model)
        usage = {"usage": None} if self.asked.include_usage else {}
        last = len(self.chosen) - 1
        for place, answer in enumerate(self.answers):
            for choice in _chat_chunks(place, answer) if chat else _text_chunks(place, answer):
                ours = {"nonpareil": self.block()} if place == last and choice["finish_reason"] else {}
                yield {**head, "choices": [choice], **usage, **ours}
        if self.asked.include_usage:
            yield {**head, "choices": [], "usage": self.usage()}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event of JSON."""
    return b"data: " + as_json(data) + b"\n\n"


def as_json(data: dict[str, Any]) -> bytes:
    """JSON in UTF-8; half characters, which it cannot hold, are escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def _head(chat: bool, kind: str, model: str) -> dict[str, Any]:
    name = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def _choice(chat: bool, place: int, answer: Answer) -> dict[str, Any]:
    said: dict[str, Any] = {"message": dict(answer.message or {})} if chat else {"text": answer.text}
    return {"index": place, **said, "logprobs": answer.logprobs, "finish_reason": answer.finish_reason}


def _chat_chunks(place: int, answer: Answer) -> Iterator[dict[str, Any]]:
    message = dict(answer.message or {})
    role = {"role": message.pop("role", "assistant"), "content": ""}
    yield {"index": place, "delta": role, "logprobs": None, "finish_reason": None}
    calls = message.pop("tool_calls", None)
    delta = {name: value for name, value in message.items() if value is not None}
    if calls:
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls)]
    yield {"index": place, "delta": delta, "logprobs": answer.logprobs, "finish_reason": None}
    yield {"index": place, "delta": {}, "logprobs": None, "finish_reason": answer.finish_reason}


def _text_chunks(place: int, answer: Answer) -> Iterator[dict[str, Any]]:
    yield {"index": place, "text": answer.text, "logprobs": answer.logprobs, "finish_reason": None}
    yield {"index": place, "text": "", "logprobs": None, "finish_reason": answer.finish_reason}
