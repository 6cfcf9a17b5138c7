"""Which of the drawn answers are returned: a rule of `selection`, over the answers of one request."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nonpareil.errors import ConfigError, DataError
from nonpareil.selection.written import parse_rule
from nonpareil.serving.problems import refused
from nonpareil.serving.reading import answer_text
from nonpareil.serving.records import Drawn, DrawRequest, Scored, UpstreamError

if TYPE_CHECKING:
    from nonpareil.selection.rule import Rule

FALLBACKS = ("none", "first")
"""What is returned where no answer has a reward: an error, or the first that were drawn."""


def rule_of(written: str, best_of: int) -> "Rule":
    """The rule that a request names, which can choose among so many answers.

    Raises:
        UpstreamError: 400: there is none of that name, or it asks for more answers.
    """
    from nonpareil.selection import candidates_of

    try:
        rule = parse_rule(written)
        if not rule.needs:
            rule.law(candidates_of([[0.0] * best_of]))
    except ConfigError as error:
        raise refused(str(error), "rule") from error
    return rule


async def chosen(rule: "Rule", request: DrawRequest, drawn: Drawn, scored: Scored, n: int) -> list[int]:
    """The places of n answers, each chosen by the rule of those that are left, the first one first.

    Ties, and what a rule leaves to chance, are decided by the request's seed. A null reward is never chosen.

    Raises:
        UpstreamError: 502: fewer than n have a reward, with the reasons; 400: the rule reads what is not there.
    """
    known = sum(reward is not None for reward in scored.rewards)
    if known < n:
        all_of = f"{known} of {len(scored.rewards)} answers have a reward, and n={n} must"
        raise UpstreamError(502, "reward_error", f"{all_of}: {reasons(scored.failures)}")
    try:
        if not rule.needs:
            return _best_first(rule, request.seed, drawn, scored, n)
        # Texts are compared pair by pair, which takes a while.
        return await asyncio.to_thread(_best_first, rule, request.seed, drawn, scored, n)
    except (ConfigError, DataError) as error:
        raise refused(str(error), "rule") from error


def _best_first(rule: "Rule", seed: int, drawn: Drawn, scored: Scored, n: int) -> list[int]:
    from nonpareil.selection import best_first, candidates_of

    answers = drawn.answers
    candidates = candidates_of(
        [scored.rewards],
        rule.needs,
        texts=[[answer_text(answer) for answer in answers]],
        token_logprobs=[[answer.token_logprobs for answer in answers]],
        lengths=[[len(answer.token_ids or ()) for answer in answers]],
    )
    return best_first(rule, candidates, n, seed)


def reasons(failures: Sequence[str | None]) -> str:
    """Why rewards are null, each reason with its count."""
    counted = Counter(reason for reason in failures if reason is not None)
    return (
        "; ".join(f"{count} times {reason}" for reason, count in counted.most_common())
        or "no reason was given"
    )
