"""A chat model as a judge: two completions of one prompt at a time, in both orders; the share won is the reward."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, RemoteError, RewardError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import DEFAULT_KEY, JsonClient, run_coroutine
from nonpareil.rewards.base import Reward
from nonpareil.rewards.endpoints.requests import MAX_RETRIES, REQUESTS_AT_ONCE, TIMEOUT, ask_all
from nonpareil.rewards.judge.cache import AnswerCache, question_key
from nonpareil.rewards.judge.questions import (
    TEMPLATE,
    Question,
    both_orders,
    check_template,
    content_of,
    plain_text,
    read_verdict,
)
from nonpareil.rewards.judge.schedule import ORDERS, calls_for, opponents_for, schedule
from nonpareil.rewards.models.encoding import text_of

ENOUGH_TO_TELL = 16
"""Answers of which one can be read where the judge understands its task at all."""


class JudgeReward(Reward):
    """The share of its comparisons that a completion wins, 0 to 1; a tie is one half.

    A group's pairs are those of `judge_schedule`: all of them, or as many as `max_calls` pays for, each
    completion in equally many. A pair is asked in both orders. It is won where both verdicts name the same
    completion; anything else that can be read is a tie, so a judge that prefers a seat gives ties only. Equal
    completions tie without a call. A pair with a verdict that could not be had or read counts for neither;
    a completion with no other pair is None, with the reason.

    The score says how a completion stands among those it was judged with: groups are scored whole, and
    scores of different groups, also of one prompt, do not compare.

    Args:
        model: as the server knows it.
        base_url: of an OpenAI-compatible server, `http://host:port/v1`.
        template: what the judge reads, with {prompt}, {a} and {b}.
        max_calls: most calls a group (a prompt). By default all pairs are judged.
        cache: file of answers, appended to and read again but for those that cannot be read as a verdict, which
            are asked for again; None keeps them in memory.
        name: of the reward's column; by default `judge-` and the last part of the model's name.
        api_key_env: the environment variable whose value is sent as a bearer token; None sends none.
        timeout: seconds a call may take, each try.
        at_once: most calls under way.
        max_retries: of a call, after 429, 5xx, timeouts and connection errors only; they are no further calls
            of the budget, since no verdict came of them.
        seed: decides which pairs are judged where not all are.

    `counts` says what has been asked since construction and what came of it.

    Raises:
        ConfigError: a setting that cannot work.
    """

    is_async = True
    compares_within_groups = True

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        template: str = TEMPLATE,
        max_calls: int | None = None,
        cache: str | Path | None = None,
        name: str | None = None,
        api_key_env: str | None = DEFAULT_KEY,
        timeout: float | None = None,
        at_once: int = REQUESTS_AT_ONCE,
        max_retries: int = MAX_RETRIES,
        seed: int = 0,
    ) -> None:
        """See the class."""
        check_template(template)
        if max_calls is not None and max_calls < ORDERS:
            raise ConfigError(
                f"judge_max_calls={max_calls} must be at least {ORDERS}: a pair takes both orders"
            )
        self._client = JsonClient(
            base_url,
            api_key_env=api_key_env,
            timeout=TIMEOUT if timeout is None else timeout,
            max_concurrency=at_once,
            max_retries=max_retries,
        )
        self._model, self._template, self._max_calls = model, template, max_calls
        self._at_once, self._seed = at_once, seed
        self._cache = AnswerCache(cache, lambda answer: read_verdict(answer) is not None)
        self.name = name or "judge-" + re.sub(r"[^\w.+-]", "-", Path(model).name)
        self.counts: Counter[str] = Counter()

    def check_group_size(self, size: int) -> int:
        """The most calls that a group of `size` completions takes.

        Raises:
            ConfigError: fewer than two completions, or a budget that is too small for them.
        """
        return calls_for(size, self._max_calls)

    def score(self, request: ScoreRequest) -> Scores:
        """The share of its comparisons that each completion wins.

        Raises:
            RewardError: groups that are unknown or incomplete, a refused call, a server that is down, or a judge
                none of whose answers (16 or more) can be read.
            ConfigError: groups too small, or too large for the budget; before any call.
        """
        return run_coroutine(self.score_async(request))

    async def score_async(self, request: ScoreRequest) -> Scores:
        """As `score`, together with other rewards."""
        groups = _whole_groups(request, self.name)
        for rows in groups:
            opponents_for(len(rows), self._max_calls)
        prompts = [plain_text(prompt) for prompt in request.prompts]
        texts = [text_of(completion) for completion in request.completions]
        pairs = [
            (prompts[rows[0]], rows[low], rows[high])
            for rows in groups
            for low, high in schedule(len(rows), self._max_calls, f"{self._seed}/{prompts[rows[0]]}").pairs
        ]
        questions = [q for prompt, x, y in pairs for q in both_orders(prompt, texts[x], texts[y])]
        reasons = await self._ask([q for q in dict.fromkeys(questions) if self._answer(q) is None])
        self._refuse_babble([self._answer(q) for q in questions])
        return self._shares(pairs, texts, reasons)

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores: no address, so a judge may move to another port."""
        return {
            "name": self.name,
            "kind": "pairwise judge",
            "model": self._model,
            "template": question_key(self._template)[:16],
            "max_calls": self._max_calls,
            "seed": self._seed,
        }

    def release(self) -> None:
        """Close the cache's file; the next answer opens it again."""
        self._cache.close()

    def _refuse_babble(self, answers: Sequence[str | None]) -> None:
        """Where nothing of a call can be read, nothing of the next will be: it would only be paid for."""
        said = [answer for answer in answers if answer is not None]
        if len(said) >= ENOUGH_TO_TELL and all(read_verdict(answer) is None for answer in said):
            first = self._client.masked(said[0])[:80]
            raise RewardError(
                f"reward {self.name!r}: none of {len(said)} answers begins with a verdict (A, B or tie); the first "
                f"is {first!r}. Give a judge that answers at once, or a judge_template that asks it to"
            )

    def _answer(self, question: Question) -> str | None:
        return self._cache.get(question.key(self._model, self._template))

    async def _ask(self, questions: Sequence[Question]) -> dict[Question, str]:
        """Ask what the cache does not hold; returns why a question has no answer, where it has none."""
        unread: dict[Question, str] = {}

        def take(place: int, answer: Any) -> None:
            content = content_of(answer)
            if content is None:
                unread[questions[place]] = (
                    f"the judge answered {self._client.said(answer, 100)!r}, which holds no one choice"
                )
            else:
                self._cache.keep(questions[place].key(self._model, self._template), content, self._model)

        self.counts["calls"] += len(questions)
        if not questions:
            return {}
        payloads = [question.payload(self._model, self._template) for question in questions]
        async with self._client as client:
            failures = await ask_all(
                client,
                "chat/completions",
                payloads,
                name=self.name,
                at_once=self._at_once,
                on_answer=take,
                is_fatal=_is_fatal,
            )
        self.counts["failed"] += len(failures) + len(unread)
        if len(unread) == len(questions) >= ENOUGH_TO_TELL:
            raise RewardError(f"reward {self.name!r}, {len(unread)} times: {next(iter(unread.values()))}")
        return unread | {questions[place]: reason for place, reason in failures.items()}

    def _shares(
        self,
        pairs: Sequence[tuple[str, int, int]],
        texts: Sequence[str],
        reasons: dict[Question, str],
    ) -> Scores:
        points: list[list[float]] = [[] for _ in texts]
        failures: list[str | None] = [None] * len(texts)
        for prompt, x, y in pairs:
            won, reason = self._outcome(both_orders(prompt, texts[x], texts[y]), reasons)
            if won is None:
                failures[x] = failures[y] = reason
                continue
            points[x].append(won)
            points[y].append(1 - won)
        values = [sum(row) / len(row) if row else None for row in points]
        return Scores(
            values, [None if row else failure for row, failure in zip(points, failures, strict=True)]
        )

    def _outcome(
        self, asked: Sequence[Question], reasons: dict[Question, str]
    ) -> tuple[float | None, str | None]:
        """What the first completion has of a pair: 1, 1/2 or 0; or None and the reason."""
        self.counts["pairs"] += 1
        if not asked:
            self.counts["equal"] += 1
            return 0.5, None
        verdicts = []
        for question in asked:
            answer = self._answer(question)
            if answer is None:
                self.counts["pairs without verdict"] += 1
                return None, reasons[question]
            verdict = read_verdict(answer)
            if verdict is None:
                self.counts["unreadable"] += 1
                self.counts["pairs without verdict"] += 1
                return None, "the judge's verdict could not be read"
            verdicts.append(verdict)
        first, second = verdicts[0], 1 - verdicts[1]
        if first == second:
            return first, None
        self.counts["disagreements"] += 1
        return 0.5, None


def _whole_groups(request: ScoreRequest, name: str) -> list[list[int]]:
    """The rows of each group."""
    if request.group_places is None:
        raise RewardError(
            f"reward {name!r} compares the completions of a group, and this request does not say which are one; "
            "make it with ScoreRequest.of(groups)"
        )
    rows: dict[int, list[int]] = {}
    for row, (number, _) in enumerate(request.group_places):
        rows.setdefault(number, []).append(row)
    for members in rows.values():
        size = request.group_places[members[0]][1]
        if len(members) != size:
            raise RewardError(
                f"reward {name!r} was given {len(members)} of a group's {size} completions; among other "
                "opponents a score would mean something else, so score groups whole"
            )
    return list(rows.values())


def _is_fatal(failure: RemoteError) -> bool:
    """Key, address or model are wrong. A 400 may be of one pair alone: too long, or refused for its content."""
    return failure.status in (401, 403, 404, 405)
