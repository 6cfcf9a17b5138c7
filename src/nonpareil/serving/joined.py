"""Work of many requests, done together: those that wait are taken in one batch by one thread."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PATIENCE = 10.0
"""Seconds that closing waits for a batch to end."""
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass
class _Waiting(Generic[Job, Result]):
    job: Job
    future: "Future[Result]" = field(default_factory=Future)


class Abandoned(Exception):
    """Raised by work that nobody waits for any more."""


class Batch(Generic[Job, Result]):
    """What is worked at together."""

    def __init__(self, waiting: "Sequence[_Waiting[Job, Result]]") -> None:
        """Of those whose turn it is."""
        self._waiting = waiting
        self.jobs = [one.job for one in waiting]

    def check(self) -> None:
        """For work to call now and then.

        Raises:
            Abandoned: all who asked for it have gone.
        """
        if all(one.future.cancelled() for one in self._waiting):
            raise Abandoned


class Joined(Generic[Job, Result]):
    """One thread that does jobs in batches; whoever is cancelled while waiting is left out.

    Where a batch fails, each of its jobs is tried alone, so that a job fails for its own reasons only.

    Args:
        work: one result a job.
        key: jobs of equal keys are done together.
        most: jobs of a batch.
        name: of the thread.
    """

    def __init__(
        self,
        work: Callable[[Batch[Job, Result]], Sequence[Result]],
        *,
        key: Callable[[Job], Hashable] = lambda job: None,
        most: int = 64,
        name: str,
    ) -> None:
        """Starts the thread."""
        self._work, self._key, self._most = work, key, most
        self._queue: deque[_Waiting[Job, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._at: Sequence[_Waiting[Job, Result]] = ()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def submit(self, job: Job) -> Result:
        """The job's result; cancelling the task that waits takes the job back. Raises what the work raises."""
        waiting: _Waiting[Job, Result] = _Waiting(job)
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._queue.append(waiting)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(waiting.future)
        except asyncio.CancelledError:
            waiting.future.cancel()
            raise

    async def close(self) -> None:
        """Ends the thread; whoever still waits is cancelled, and a batch that takes no notice is left to itself."""
        with self._changed:
            self._closed = True
            for one in (*self._queue, *self._at):
                one.future.cancel()
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, PATIENCE)

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            # Futures stay pending while they are worked at, so that cancelling one still shows.
            self._do(waiting)

    def _next(self) -> "list[_Waiting[Job, Result]] | None":
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            here = [one for one in self._queue if not one.future.cancelled()]
            key = self._key(here[0].job) if here else None
            taken = [one for one in here if self._key(one.job) == key][: self._most]
            chosen = {id(one) for one in taken}
            self._queue = deque(one for one in here if id(one) not in chosen)
            self._at = taken
            return taken

    def _do(self, waiting: "list[_Waiting[Job, Result]]") -> None:
        if not waiting:
            return
        try:
            results = self._work(Batch(waiting))
        except Exception as error:  # noqa: BLE001 (handed to who waits)
            if len(waiting) == 1:
                _fail(waiting[0].future, error)
                return
            for one in waiting:
                if not one.future.cancelled():
                    self._do([one])
            return
        for one, result in zip(waiting, results, strict=True):
            with suppress(Exception):  # cancelled meanwhile
                one.future.set_result(result)


def _fail(future: "Future[Result]", error: Exception) -> None:
    with suppress(Exception):  # cancelled meanwhile
        future.set_exception(error)
