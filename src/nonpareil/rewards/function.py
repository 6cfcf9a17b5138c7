"""A Python function as a reward, with TRL's signature; a failure is a null with its reason, no number."""

import asyncio
import hashlib
import inspect
import math
from collections.abc import Callable
from typing import Any

from nonpareil.errors import ConfigError, NonpareilError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import run_coroutine
from nonpareil.rewards.load import load_function
from nonpareil.rewards.values import accepted_arguments, read_values, reason_of, unwrapped
from nonpareil.rewards.worker import CallFailed, Worker

ASYNC_RETRIES_AT_ONCE = 8
"""So that retrying a batch one by one does not stampede the service that has just failed."""


class FunctionReward:
    """`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or `async def`.

    The function is called by keyword, with every dataset column if it takes **kwargs, else those it names.
    A call that raises is made again one completion at a time, so that only the failing completions are None.

    Args:
        function: or its path, as `load_function` takes it.
        name: of the reward's column; by default the function's.
        timeout: seconds a call may take. A sync function then runs in a process of its own, which is killed
            when the time is up, so it must be importable there. An async one is cancelled where it awaits.

    Raises:
        ConfigError: not callable, a timeout that is not positive, or no other process can import it.
    """

    def __init__(
        self, function: Callable[..., Any] | str, *, name: str | None = None, timeout: float | None = None
    ) -> None:
        """See the class."""
        self._function = load_function(function) if isinstance(function, str) else function
        if not callable(self._function):
            raise ConfigError(f"a reward function must be callable; got a {type(function).__name__}")
        if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigError(f"timeout={timeout} must be a positive number of seconds, or None for no limit")
        self.name = name or _name_of(self._function)
        self.is_async = _is_async(self._function)
        self._timeout = timeout
        in_process = timeout is None or self.is_async
        self._worker = None if in_process else Worker(self._function, self.name)

    def score(self, request: ScoreRequest) -> Scores:
        """What the function returns for each completion; None with its reason where it failed.

        Raises:
            RewardError: it returned another number of values than there are completions.
            ConfigError: it needs an argument that is no column of the data.
        """
        if len(request) == 0:
            return Scores([], [])
        if self.is_async:
            return run_coroutine(self.score_async(request))
        try:
            return self._call(request)
        except CallFailed as failure:
            if len(request) == 1:
                return Scores([None], [str(failure)])
        return _joined([self.score(request.select([row])) for row in range(len(request))])

    async def score_async(self, request: ScoreRequest) -> Scores:
        """As `score`, for an `async def`, awaited together with other rewards."""
        if len(request) == 0:
            return Scores([], [])
        try:
            return await self._call_async(request)
        except CallFailed as failure:
            if len(request) == 1:
                return Scores([None], [str(failure)])
        at_once = asyncio.Semaphore(ASYNC_RETRIES_AT_ONCE)

        async def retry(row: int) -> Scores:
            async with at_once:
                return await self.score_async(request.select([row]))

        return _joined(await asyncio.gather(*(retry(row) for row in range(len(request)))))

    def describe(self) -> dict[str, Any]:
        """Settings that change the scores, with a hash of the function's source where there is one."""
        target = unwrapped(self._function)
        try:
            source = hashlib.sha256(inspect.getsource(target).encode()).hexdigest()[:16]
        except (OSError, TypeError):
            source = None
        return {
            "name": self.name,
            "kind": "function",
            "function": getattr(target, "__qualname__", type(target).__qualname__),
            "source": source,
            "timeout": self._timeout,
        }

    def release(self) -> None:
        """End the worker process, if there is one; the next call starts another."""
        if self._worker is not None:
            self._worker.stop()

    def _call(self, request: ScoreRequest) -> Scores:
        if self._worker is not None and self._timeout is not None:
            return self._worker.call(request, self._timeout)
        arguments = accepted_arguments(self._function, self.name, request)
        try:
            returned = self._function(**arguments)
            if inspect.isawaitable(returned):  # a decorated `async def` that does not look like one
                returned = run_coroutine(_awaited(returned))
            return read_values(returned, len(request), self.name)
        except NonpareilError:
            raise
        except Exception as error:  # (a failing reward is a null with this reason)
            raise CallFailed(reason_of(error)) from error

    async def _call_async(self, request: ScoreRequest) -> Scores:
        arguments = accepted_arguments(self._function, self.name, request)
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                returned = await self._function(**arguments)
            return read_values(returned, len(request), self.name)
        except NonpareilError:
            raise
        except Exception as error:  # (a failing reward is a null with this reason)
            late = deadline.expired()
            raise CallFailed(f"timed out after {self._timeout:g} s" if late else reason_of(error)) from error


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _joined(parts: list[Scores]) -> Scores:
    return Scores([v for part in parts for v in part.values], [f for part in parts for f in part.failures])


def _is_async(function: Any) -> bool:
    if not callable(function):
        return False
    # An object with an `async def __call__` counts too.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _name_of(function: Any) -> str:
    target = unwrapped(function)
    return getattr(target, "__name__", type(target).__name__).strip("<>")
