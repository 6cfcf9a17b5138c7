"""The work for one request: drawn, scored, chosen, kept. It knows nothing of HTTP."""

import asyncio
import time
from dataclasses import dataclass

from nonpareil.serving.body import Asked, Defaults
from nonpareil.serving.choosing import chosen
from nonpareil.serving.limits import Gate, TokenBudget
from nonpareil.serving.metrics import Metrics
from nonpareil.serving.problems import late, refused
from nonpareil.serving.records import Drawn, GroupWriter, Scored, Upstream, UpstreamError
from nonpareil.serving.replies import Reply
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
        most = request.best_of * asked.max_tokens
        self._check_size(asked, most)
        async with self._gate.entered():
            self._budget.take(most)
            spent = most  # also of those who leave: what was drawn for them is not known
            self.metrics.running.set(self._gate.inside)
            try:
                async with asyncio.timeout(request.deadline - time.monotonic()) as limit, self._gate.turn():
                    reply = await self._drawn_and_chosen(asked)
                spent = reply.drawn.completion_tokens
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise late(self.defaults.seconds) from error
            except UpstreamError:
                spent = 0
                raise
            finally:
                self._budget.give_back(most - spent)
                self.metrics.running.set(self._gate.inside - 1)
        self.answered += 1
        return reply

    def _check_size(self, asked: Asked, most: int) -> None:
        bounds = (self._bounds.tokens_per_request, self._bounds.tokens_per_minute)
        bound = min((each for each in bounds if each is not None), default=None)
        if bound is not None and most > bound:
            raise refused(
                f"best_of={asked.request.best_of} answers of max_tokens={asked.max_tokens} are {most} tokens, and "
                f"one request may draw {bound}; lower either",
                "max_tokens",
            )

    async def _drawn_and_chosen(self, asked: Asked) -> Reply:
        request, begun = asked.request, time.monotonic()
        drawn = await self.upstream.draw(request)
        if len(drawn.answers) != request.best_of:
            raise UpstreamError(
                502,
                "upstream_error",
                f"the upstream gave {len(drawn.answers)} answers, and {request.best_of} were asked",
            )
        self.metrics.drew(drawn, time.monotonic() - begun)
        begun = time.monotonic()
        scored = await self.scorer.score(request, drawn)
        self.metrics.scored(scored, time.monotonic() - begun)
        try:
            places, fallback = await chosen(asked.rule, request, drawn, scored, asked.n), None
            self.metrics.chose(scored, places[0])
        except UpstreamError:
            if self._fallback == "none" or any(reward is not None for reward in scored.rewards):
                await self._keep(asked, drawn, scored, [])
                raise
            places, fallback = list(range(asked.n)), self._fallback
            self.metrics.fallbacks.inc()
        await self._keep(asked, drawn, scored, places)
        return Reply(asked, drawn, scored, places, fallback)

    async def _keep(self, asked: Asked, drawn: Drawn, scored: Scored, places: list[int]) -> None:
        if self._writer is not None:
            await self._writer.write(asked.request, drawn, scored, places, str(asked.rule))

    async def close(self) -> None:
        """Let upstream and rewards go; what is to be kept of the groups is written."""
        await self.upstream.close()
        await self.scorer.close()
        if self._writer is not None:
            await self._writer.close()
