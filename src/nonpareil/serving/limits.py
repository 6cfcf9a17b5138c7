"""What bounds a server's work: requests under way and waiting, and tokens a minute."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from nonpareil.serving.problems import too_many


class Gate:
    """At most so many requests under way, and so many that wait for their turn; the next is told to come again.

    Args:
        running: requests under way at once.
        waiting: requests that wait, beside those.
    """

    def __init__(self, running: int, waiting: int) -> None:
        """Open."""
        self._most = running + waiting
        self._turns = asyncio.Semaphore(running)
        self.inside = 0
        """Requests that are under way or wait."""
        self._seconds = 1.0
        """That a request took lately."""
        self._running = running

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """A place among those that wait or are under way.

        Raises:
            UpstreamError: 429: there is none.
        """
        if self.inside >= self._most:
            wait = self._seconds * max(1, self._most - self._running) / self._running
            raise too_many(f"{self.inside} requests are under way or wait; this is one more", wait)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until the request may be worked at."""
        async with self._turns:
            begun = time.monotonic()
            try:
                yield
            finally:
                self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)


class TokenBudget:
    """Tokens a minute, as a bucket that fills evenly and holds a minute's; None bounds nothing.

    What a request may draw at most is taken when it comes, and what it did not draw is given back.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Full."""
        self._most, self._clock = per_minute, clock
        self._left, self._then = float(per_minute or 0), clock()

    def take(self, tokens: int) -> None:
        """Take what a request may draw.

        Raises:
            UpstreamError: 429, with the seconds until there is so much.
        """
        if self._most is None:
            return
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._then) * self._most / 60)
        self._then = now
        if tokens > self._left:
            wait = (tokens - self._left) * 60 / self._most
            raise too_many(
                f"the request may draw {tokens} tokens, and {int(self._left)} of {self._most} a minute are left",
                wait,
            )
        self._left -= tokens

    def give_back(self, tokens: int) -> None:
        """Give back what was not drawn; less than nothing where more was."""
        if self._most is not None:
            self._left = min(self._most, self._left + tokens)
