"""The work for one request: drawn, scored, chosen, kept. It knows nothing of HTTP."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from nonpareil.serving.alike import check_alike
from nonpareil.serving.body import Asked, Defaults
from nonpareil.serving.choosing import chosen
from nonpareil.serving.limits import Gate, TokenBudget
from nonpareil.serving.metrics import Metrics
from nonpareil.serving.problems import late, refused
from nonpareil.serving.records import GroupWriter, Upstream, UpstreamError
from nonpareil.serving.replies import Reply
from nonpareil.serving.rounds import Found, Rounds
from nonpareil.serving.scoring import Scorer


@dataclass(frozen=True)
class Bounds:
    """What one server takes on."""

    running: int
    """Requests under way at once."""
    waiting: int
    """Requests that wait beside those."""
    tokens_per_request: int | None
    """Tokens that a request may draw at most; None bounds nothing."""
    tokens_per_minute: int | None


def _least(bounds: Bounds) -> int | None:
    """Tokens that one request may draw."""
    known = (bounds.tokens_per_request, bounds.tokens_per_minute)
    return min((each for each in known if each is not None), default=None)


def compared(names: Sequence[str]) -> str:
    """Why rewards that compare answers with one another cannot say when to stop."""
    return (
        f"reward {', '.join(map(repr, names))} compares the answers of one round with one another, and no answer "
        "with what it stops at; give no max_draws"
    )


class Service:
    """Answers requests from an upstream by a reward."""

    def __init__(
        self,
        upstream: Upstream,
        scorer: Scorer,
        defaults: Defaults,
        bounds: Bounds,
        *,
        fallback: str = "none",
        writer: GroupWriter | None = None,
    ) -> None:
        """`fallback`: `first` answers with the first that were drawn where no reward is known; `none` does not."""
        self.upstream, self.scorer, self.defaults = upstream, scorer, defaults
        self._bounds, self._fallback, self._writer = bounds, fallback, writer
        self.metrics = Metrics()
        self._gate = Gate(bounds.running, bounds.waiting)
        self._budget = TokenBudget(bounds.tokens_per_minute)
        self._rounds = Rounds(upstream, scorer, self._budget, _least(bounds), self.metrics)
        self.answered = self.failed = 0

    @property
    def inside(self) -> int:
        """Requests that are under way or wait."""
        return self._gate.inside

    async def answer(self, asked: Asked) -> Reply:
        """Draw, score and choose, by the request's deadline.

        Raises:
            UpstreamError: what is told to the client in the answer's place: 400, what cannot be drawn or scored;
                429, no place or no tokens left; 502, 503 and 504, of upstream and reward.
        """
        request = asked.request
        self.scorer.check(request)
        self._check_goal(asked)
        most = request.best_of * asked.max_tokens
        self._check_size(asked, most)
        async with self._gate.entered():
            self._budget.take(most)
            self.metrics.running.set(self._gate.inside)
            try:
                async with asyncio.timeout(request.deadline - time.monotonic()) as limit, self._gate.turn():
                    reply = await self._drawn_and_chosen(asked)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise late(self.defaults.seconds) from error
            finally:
                self.metrics.running.set(self._gate.inside - 1)
        self.answered += 1
        return reply

    def _check_size(self, asked: Asked, most: int) -> None:
        bound = _least(self._bounds)
        if bound is not None and most > bound:
            raise refused(
                f"best_of={asked.request.best_of} answers of max_tokens={asked.max_tokens} are {most} tokens, and "
                f"one request may draw {bound}; lower either",
                "max_tokens",
            )

    def _check_goal(self, asked: Asked) -> None:
        if asked.goal is None:
            return
        if self.scorer.reward is not None and (names := self.scorer.reward.names_within_groups):
            raise refused(compared(names), "max_draws")
        if asked.goal.calibration is not None:
            check_alike(asked.request, asked.goal.calibration)

    async def _drawn_and_chosen(self, asked: Asked) -> Reply:
        first = await self._rounds.first(asked)
        try:
            found = await self._rounds.further(asked, first)
        except asyncio.CancelledError:
            # They wait since the first round was not good enough: without it the kept ones would be too good.
            await self._keep(asked, first, [])
            raise
        if self.scorer.reward is None:
            return Reply(asked, found.drawn, found.scored, [0])
        try:
            places, fallback = (
                await chosen(asked.rule, asked.request, found.drawn, found.scored, asked.n),
                None,
            )
            self.metrics.chose(found.scored, places[0])
        except UpstreamError as error:
            if self._fallback == "none" or any(reward is not None for reward in found.scored.rewards):
                await self._keep(asked, first, [])
                if found.stop is not None and found.stop.words:
                    error.message += f"; then a further round failed: {found.stop.words}"
                raise
            places, fallback = list(range(asked.n)), self._fallback
            self.metrics.fallbacks.inc()
        await self._keep(asked, first, places)
        return Reply(asked, found.drawn, found.scored, places, fallback, found.stop)

    async def _keep(self, asked: Asked, first: Found, places: list[int]) -> None:
        """The first round alone: how many more were drawn follows from its rewards, and a group is plain draws."""
        if self._writer is None:
            return
        request, rule = asked.request, str(asked.rule)
        if asked.goal is not None:
            rule += f" (max_draws={request.max_draws}, {asked.goal.field}={asked.goal.at:g})"
        inside = [place for place in places if place < len(first.drawn.answers)]
        self.metrics.kept(await self._writer.write(request, first.drawn, first.scored, inside, rule))

    async def close(self) -> None:
        """Let upstream and rewards go; what is to be kept of the groups is written."""
        await self.upstream.close()
        await self.scorer.close()
        if self._writer is not None:
            await self._writer.close()
