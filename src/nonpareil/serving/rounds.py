"""Draws in rounds: a request's first answers, and as many again until one is good enough or something ends."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nonpareil.serving.body import Asked
from nonpareil.serving.limits import TokenBudget
from nonpareil.serving.records import Drawn, DrawRequest, Scored, Upstream, UpstreamError
from nonpareil.serving.scoring import Scorer, unscored

if TYPE_CHECKING:
    from nonpareil.serving.metrics import Metrics

KEPT = 0.02
"""Share of the time left that a further round leaves for choosing and writing the answer."""


@dataclass(frozen=True)
class Stop:
    """Why no further round was drawn."""

    why: str
    """`reward` or `quantile`, an answer is good enough; `max_draws`; `deadline`; `tokens`; `error`, a further round
    failed."""
    words: str | None = None
    """What failed."""


@dataclass(frozen=True)
class Found:
    """All that was drawn for a request, with its scores."""

    drawn: Drawn
    scored: Scored
    stop: Stop | None = None
    """None where the number of draws was fixed."""


class Rounds:
    """Draws and scores a request's answers.

    The tokens of the first round are taken of the budget by the caller, before the request waits for its turn;
    what a round did not draw is given back here.
    """

    def __init__(
        self,
        upstream: Upstream,
        scorer: Scorer,
        budget: TokenBudget,
        tokens_per_request: int | None,
        metrics: "Metrics",
    ) -> None:
        """Of one server."""
        self._upstream, self._scorer, self._metrics = upstream, scorer, metrics
        self._budget, self._tokens_per_request = budget, tokens_per_request

    async def first(self, asked: Asked) -> Found:
        """The first round of a request, and the only one where the number of draws is fixed.

        Raises:
            UpstreamError: it failed.
        """
        drawn = await self._draw(asked.request, asked.max_tokens)
        return Found(drawn, await self._score(asked.request, drawn))

    async def further(self, asked: Asked, first: Found) -> Found:
        """The rounds behind the first one; a failure ends them, and takes nothing from the earlier ones."""
        if asked.goal is None:
            return first
        request, drawn, scored = asked.request, first.drawn, first.scored
        # A round that would end at the deadline would leave no time to answer.
        until = request.deadline - KEPT * max(0.0, request.deadline - time.monotonic())
        stop = self._ended(asked, drawn, scored)
        while stop is None:
            left = request.max_draws - len(drawn.answers)
            further = replace(request, best_of=min(request.best_of, left), first=len(drawn.answers))
            more, scores, stop = await self._further(further, asked.max_tokens, until)
            if more is not None and scores is not None:
                drawn, scored = _joined(drawn, more), _both(scored, scores)
            stop = stop or self._ended(asked, drawn, scored)
        self._metrics.stops.labels(stop.why).inc()
        return Found(drawn, scored, stop)

    def _ended(self, asked: Asked, drawn: Drawn, scored: Scored) -> Stop | None:
        """Whether that is enough; what the next round may draw is taken of the budget if not."""
        request, goal = asked.request, asked.goal
        if goal is not None and goal.reached(scored.rewards) >= asked.n:
            return Stop(goal.why)
        if len(drawn.answers) >= request.max_draws:
            return Stop("max_draws")
        most = min(request.best_of, request.max_draws - len(drawn.answers)) * asked.max_tokens
        bound = self._tokens_per_request
        if bound is not None and drawn.completion_tokens + most > bound:
            return Stop("tokens")
        try:
            self._budget.take(most)
        except UpstreamError:
            return Stop("tokens")
        return None

    async def _further(
        self, request: DrawRequest, max_tokens: int, until: float
    ) -> tuple[Drawn | None, Scored | None, Stop | None]:
        """A further round: what came of it, and what ended it."""
        drawn = None
        try:
            async with asyncio.timeout(until - time.monotonic()) as limit:
                drawn = await self._draw(request, max_tokens)
                return drawn, await self._score(request, drawn), None
        except TimeoutError:
            if not limit.expired():
                raise
            stop = Stop("deadline")
        except UpstreamError as error:
            stop = Stop("error", error.message)
        if drawn is None:
            return None, None, stop
        # They were drawn, and count; only nobody knows their rewards.
        reason = stop.words or "not scored by the deadline"
        return drawn, unscored(self._scorer.names, len(drawn.answers), reason), stop

    async def _draw(self, request: DrawRequest, max_tokens: int) -> Drawn:
        most, begun = request.best_of * max_tokens, time.monotonic()
        spent = most  # also of those who leave or are late: what was drawn for them is not known
        try:
            drawn = await self._upstream.draw(request)
            spent = drawn.completion_tokens
        except UpstreamError:
            spent = 0
            raise
        finally:
            self._budget.give_back(most - spent)
        self._metrics.drew(drawn, time.monotonic() - begun)
        if len(drawn.answers) != request.best_of:
            raise UpstreamError(
                502,
                "upstream_error",
                f"the upstream gave {len(drawn.answers)} answers, and {request.best_of} were asked",
            )
        return drawn

    async def _score(self, request: DrawRequest, drawn: Drawn) -> Scored:
        begun = time.monotonic()
        scored = await self._scorer.score(request, drawn)
        if self._scorer.reward is not None:
            self._metrics.scored(scored, time.monotonic() - begun)
        return scored


def _joined(drawn: Drawn, more: Drawn) -> Drawn:
    """Both rounds as one; the prompt's tokens count once."""
    return replace(
        drawn,
        answers=drawn.answers + more.answers,
        completion_tokens=drawn.completion_tokens + more.completion_tokens,
        upstream_requests=drawn.upstream_requests + more.upstream_requests,
    )


def _both(scored: Scored, more: Scored) -> Scored:
    names = scored.by_name
    return Scored(
        {name: scored.by_name[name] + more.by_name[name] for name in names},
        scored.rewards + more.rewards,
        scored.failures + more.failures,
        {name: scored.failures_by_name[name] + more.failures_by_name[name] for name in names},
    )
