"""A chat model behind a server as a judge: which of two answers is better, asked once and remembered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import RemoteError, RewardError
from nonpareil.remote import JsonClient
from nonpareil.rewards.endpoints.requests import ask_all
from nonpareil.rewards.judge.cache import AnswerCache
from nonpareil.rewards.judge.questions import Question, content_of, read_verdict

ENOUGH_TO_TELL = 16
"""Answers of which at least one can be parsed where the judge understands its task at all."""


class Judge:
    """A model, what it is shown (`template`) and its answers so far, in memory and in the file `cache`."""

    def __init__(
        self,
        name: str,
        model: str,
        template: str,
        client: JsonClient,
        cache: str | Path | None = None,
        at_once: int = 8,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """`name` is the reward's, for messages; `at_once`: most calls under way.

        `chat_template_kwargs`: what the server is to give the model's chat template.

        Raises:
            ConfigError: a cache that holds something else, or that cannot be read or written.
        """
        self._name, self._how = name, (model, template, dict(chat_template_kwargs or {}))
        self._client, self._at_once = client, at_once
        self.cache = AnswerCache(cache, lambda answer: read_verdict(answer) is not None)

    def answer(self, question: Question) -> str | None:
        """What the judge said; None where it has not answered."""
        return self.cache.get(question.key(*self._how))

    async def ask(self, questions: Sequence[Question]) -> dict[Question, str]:
        """Ask the judge; its answers are in `answer` from then on. Returns why, of each question it did not answer.

        Raises:
            RewardError: a refused call, a server that is down, or one that never gives one choice.
        """
        without_choice: dict[Question, str] = {}

        def keep(place: int, body: Any) -> None:
            content = content_of(body)
            if content is None:
                said = self._client.said(body, 100)
                without_choice[questions[place]] = f"the judge answered {said!r}, which holds no one choice"
            else:
                self.cache.keep(questions[place].key(*self._how), content, self._how[0])

        if not questions:
            return {}
        async with self._client as client:
            failures = await ask_all(
                client,
                "chat/completions",
                [question.payload(*self._how) for question in questions],
                name=self._name,
                at_once=self._at_once,
                on_answer=keep,
                is_fatal=_is_fatal,
            )
        if len(without_choice) == len(questions) >= ENOUGH_TO_TELL:
            reason = next(iter(without_choice.values()))
            raise RewardError(f"reward {self._name!r}, {len(without_choice)} times: {reason}")
        return without_choice | {questions[place]: reason for place, reason in failures.items()}

    def check_parseable(self, questions: Sequence[Question]) -> None:
        """Refuse a judge none of whose answers (16 or more) holds a verdict: the next call would be paid in vain.

        Raises:
            RewardError: with the first answer.
        """
        said = [answer for question in questions if (answer := self.answer(question)) is not None]
        if len(said) >= ENOUGH_TO_TELL and all(read_verdict(answer) is None for answer in said):
            first = self._client.masked(said[0])[:80]
            raise RewardError(
                f"reward {self._name!r}: none of {len(said)} answers begins with a verdict (A, B or tie); the "
                f"first is {first!r}. Give a judge that answers at once, or a judge_template that asks it to"
            )


def _is_fatal(failure: RemoteError) -> bool:
    """Key, address or model are wrong. A 400 may be of one pair alone: too long, or refused for its content."""
    return failure.status in (401, 403, 404, 405)
