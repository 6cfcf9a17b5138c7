"""Completions of one prompt judged in pairs, each pair in both orders; the share of pairs won is the reward."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores, text_of
from nonpareil.remote import DEFAULT_KEY, JsonClient, run_coroutine
from nonpareil.rewards.base import Reward
from nonpareil.rewards.endpoints.requests import MAX_RETRIES, REQUESTS_AT_ONCE, TIMEOUT
from nonpareil.rewards.judge.cache import question_key
from nonpareil.rewards.judge.judge import Judge
from nonpareil.rewards.judge.questions import (
    TEMPLATE,
    Question,
    both_orders,
    check_template,
    plain_text,
    read_verdict,
)
from nonpareil.rewards.judge.schedule import ORDERS, calls_for, opponents_for, schedule


class JudgeReward(Reward):
    """The share of its comparisons that a completion wins, 0 to 1; a tie is one half.

    The pairs of a group are those of `schedule`: all of them, or as many as `max_calls` pays for, with each
    completion in equally many. Each pair is judged in both orders. It is won where both verdicts name the same
    completion; two verdicts that disagree are a tie, so position bias earns nothing. Equal completions tie without
    a call. A pair without two verdicts (a failed call, an unparseable answer) counts for neither completion; a
    completion that is left without pairs is None, with the reason.

    The score says how a completion stands among those it was judged with. So groups are scored whole, and scores
    of different groups, even of the same prompt, cannot be compared.

    Args:
        model: as the server knows it.
        base_url: of an OpenAI-compatible server, `http://host:port/v1`.
        template: what the judge reads, with {prompt}, {a} and {b}.
        chat_template_kwargs: arguments of the model's chat template, such as {"enable_thinking": False}, which are
            sent with each call, as vLLM and SGLang read them. A server that knows none of them may refuse the call,
            or leave them unread.
        max_calls: most calls per group (prompt). By default all pairs are judged.
        cache: file of answers, appended to and read again. Unparseable answers in it are asked for again. None
            keeps the answers in memory.
        name: of the reward's column; by default `judge-` and the last part of the model's name.
        api_key_env: the environment variable whose value is sent as a bearer token; None sends none.
        timeout: seconds per call, for each try.
        at_once: most calls under way.
        max_retries: per call, after 429, 5xx, timeouts and connection errors only. A retry is no further call of
            the budget, since it follows a call that brought no verdict.
        seed: decides which pairs are judged where not all are.

    `counts` has, since construction: "calls", "failed" ones, "pairs", of which "equal" (no call), "disagreements"
    (of the two orders) and "pairs without verdict", and "unparseable" answers.

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
        chat_template_kwargs: Mapping[str, Any] | None = None,
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
        try:
            json.dumps(chat_template_kwargs, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"judge_chat_template_kwargs={chat_template_kwargs!r}: {error}") from error
        client = JsonClient(
            base_url,
            api_key_env=api_key_env,
            timeout=TIMEOUT if timeout is None else timeout,
            max_concurrency=at_once,
            max_retries=max_retries,
        )
        self.name = name or "judge-" + re.sub(r"[^\w.+-]", "-", Path(model).name)
        self.judge = Judge(self.name, model, template, client, cache, at_once, chat_template_kwargs)
        self._model, self._template, self._max_calls, self._seed = model, template, max_calls, seed
        self._template_kwargs = dict(chat_template_kwargs or {})
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
                none of whose answers (16 or more) can be parsed.
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
        pairs: dict[tuple[int, int], list[Question]] = {}
        for rows in groups:
            prompt = prompts[rows[0]]
            for low, high in schedule(len(rows), self._max_calls, f"{self._seed}/{prompt}").pairs:
                x, y = rows[low], rows[high]
                pairs[x, y] = both_orders(prompt, texts[x], texts[y])
        questions = [question for asked in pairs.values() for question in asked]
        missing = [q for q in dict.fromkeys(questions) if self.judge.answer(q) is None]
        self.counts["calls"] += len(missing)
        reasons = await self.judge.ask(missing)
        self.counts["failed"] += len(reasons)
        self.judge.check_parseable(questions)
        return self._shares(pairs, len(texts), reasons)

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores: no address, so a judge may move to another port."""
        return {
            "name": self.name,
            "kind": "pairwise judge",
            "model": self._model,
            "template": question_key(self._template)[:16],
            **({"chat_template_kwargs": self._template_kwargs} if self._template_kwargs else {}),
            "max_calls": self._max_calls,
            "seed": self._seed,
        }

    def release(self) -> None:
        """Close the cache's file; the next answer opens it again."""
        self.judge.cache.close()

    def _shares(
        self,
        pairs: Mapping[tuple[int, int], Sequence[Question]],
        completions: int,
        reasons: Mapping[Question, str],
    ) -> Scores:
        """The mean over each completion's pairs; None where it has none left."""
        points: list[list[float]] = [[] for _ in range(completions)]
        failures: list[str | None] = [None] * completions
        for (x, y), asked in pairs.items():
            won, reason = self._outcome(asked, reasons)
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
        self, asked: Sequence[Question], reasons: Mapping[Question, str]
    ) -> tuple[float | None, str | None]:
        """What the first completion of a pair gets: 1, 1/2 or 0; or None and the reason."""
        self.counts["pairs"] += 1
        if not asked:
            self.counts["equal"] += 1
            return 0.5, None
        verdicts = []
        for question in asked:
            answer = self.judge.answer(question)
            verdict = None if answer is None else read_verdict(answer)
            if verdict is None:
                self.counts["pairs without verdict"] += 1
            if answer is None:
                return None, reasons[question]
            if verdict is None:
                self.counts["unparseable"] += 1
                return None, "the judge's verdict could not be read"
            verdicts.append(verdict)
        first, second = verdicts[0], 1 - verdicts[1]  # in the second order the completions change places
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
