"""Call a reward function, here or in a worker: on lists of its own, seeded by what is scored, and contained."""

import asyncio
import hashlib
import inspect
import itertools
import random
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.functions.training_log import FunctionLog
from nonpareil.rewards.functions.trl_signature import accepted_arguments, read_values
from nonpareil.user_code.contained import CallFailed, contained, failure_of
from nonpareil.user_code.kept_state import Keeper, interruption


def call(
    function: Callable[..., Any], request: ScoreRequest, name: str, keepers: tuple[Keeper, ...] | None = None
) -> Scores:
    """The function's scores for its own copy of the request, and what it logged; an awaitable is awaited.

    Raises:
        CallFailed: it raised whatever it may raise.
        RewardError: it broke its contract.
        ConfigError: it needs an argument that is no column of the data.
    """
    log = FunctionLog.of(name, request)
    arguments = accepted_arguments(function, name, request.copy(), log.loggers if log else None)
    with contained(keepers):
        _seed(request)
        returned = function(**arguments)
        if inspect.isawaitable(returned):  # a decorated `async def` that does not look like one
            try:
                returned = run_on_kept_loop(_awaited(returned))
            except BaseException as error:
                if interruption() is not None:
                    raise
                raise failure_of(error, costly=True) from error
        return _with_log(read_values(returned, len(request), name), log)


async def call_async(
    function: Callable[..., Any], request: ScoreRequest, name: str, timeout: float | None
) -> Scores:
    """As `call`, awaited; cancelled after `timeout` seconds. What raises in its tasks is held in, too."""
    log = FunctionLog.of(name, request)
    arguments = accepted_arguments(function, name, request.copy(), log.loggers if log else None)
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(_contained_task)
    with contained(costly=True):
        _seed(request)
        try:
            async with asyncio.timeout(timeout) as deadline:
                returned = await function(**arguments)
        except TimeoutError as error:
            if deadline.expired():
                raise CallFailed(f"timed out after {timeout:g} s", costly=True) from error
            raise
        return _with_log(read_values(returned, len(request), name), log)


class _Loops:
    """Of a thread: the loop that runs users' coroutines, and a thread that does while this one runs a loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.beside = ThreadPoolExecutor(1)  # which starts no thread before it is needed
        weakref.finalize(self, self.loop.close)  # with its thread, or at the end


class _OfThread(threading.local):
    loops: _Loops | None = None


_of_thread = _OfThread()


def run_on_kept_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As `remote.run_coroutine`, on the loop of the call before: TRL's trainer, too, has one for all calls.

    A client with open connections, a lock or a semaphore belongs to the loop that first used it, and a script has
    them once, for all calls. Tasks that a call leaves behind are cancelled.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(coroutine)
    return _loops().beside.submit(_run, coroutine).result()


def _loops() -> _Loops:
    if _of_thread.loops is None:
        _of_thread.loops = _Loops()
    return _of_thread.loops


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = _loops().loop
    try:
        return loop.run_until_complete(coroutine)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.set_task_factory(None)  # of `call_async`; the next call may have another


def _with_log(scores: Scores, log: FunctionLog | None) -> Scores:
    """Behind the values: a generator logs while they are read."""
    return scores if log is None else replace(scores, logged=log.logged())


def _seed(request: ScoreRequest) -> None:
    """Set the global generators by what is scored: the same numbers here, in a worker and after a resume."""
    texts = itertools.chain(map(str, request.prompts), map(str, request.completions))
    digest = hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).digest()
    seed = int.from_bytes(digest[:4], "big")
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # else it would be noted, and done when it is
            torch.cuda.manual_seed_all(seed)


def _contained_task(loop: Any, coroutine: Any, **settings: Any) -> Any:
    return asyncio.Task(_held(coroutine), loop=loop, **settings)


async def _held(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """asyncio lets these two end the whole loop, with all that is awaited beside it."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        if interruption() is not None:
            raise
        raise failure_of(error, costly=True) from error


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
