"""One way to run a user's code, here and in a worker: with lists of its own, and whatever it does held in."""

import asyncio
import hashlib
import inspect
import itertools
import os
import random
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import run_coroutine
from nonpareil.rewards.kept_state import Keeper, interruption, kept_state
from nonpareil.rewards.values import accepted_arguments, read_values, reason_of
from nonpareil.terminal import printable

TRACE_CHARACTERS = 20_000
"""Of a traceback, its end: what is kept."""
CLIENTS = frozenset(
    (
        *("aiohttp", "anthropic", "botocore", "google", "grpc", "http", "httpcore", "httpx", "litellm"),
        *("mistralai", "openai", "requests", "socket", "ssl", "urllib", "urllib3"),
    )
)
"""Packages that talk to servers; an exception of theirs is a server's failure."""
_NOT_THEIRS = (str(Path(__file__).parent), "<frozen ")
"""Files whose frames are not those of the user's code."""


class CallFailed(Exception):
    """A call that gave no values: it raised, ran out of time or took its process with it. Says which."""

    def __init__(self, reason: str, place: str = "", trace: str = "", costly: bool = False) -> None:
        """`place`: the last frame, file:line in function. `costly`: a server was asked; asking again may cost."""
        super().__init__(reason, place, trace, costly)
        self.reason, self.place, self.trace, self.costly = reason, place, trace, costly

    def __str__(self) -> str:
        return self.reason


def call(
    function: Callable[..., Any], request: ScoreRequest, name: str, keepers: tuple[Keeper, ...] | None = None
) -> Scores:
    """The function's scores for its own copy of the request; an awaitable that it returns is awaited.

    Raises:
        CallFailed: it raised whatever it may raise.
        RewardError: it broke its contract.
        ConfigError: it needs an argument that is no column of the data.
    """
    arguments = accepted_arguments(function, name, request.copy())
    with contained(keepers):
        _seed(request)
        returned = function(**arguments)
        if inspect.isawaitable(returned):  # a decorated `async def` that does not look like one
            try:
                returned = run_coroutine(_awaited(returned))
            except BaseException as error:
                if interruption() is not None:
                    raise
                raise failure_of(error, costly=True) from error
        return read_values(returned, len(request), name)


async def call_async(
    function: Callable[..., Any], request: ScoreRequest, name: str, timeout: float | None
) -> Scores:
    """As `call`, awaited; cancelled after `timeout` seconds. What raises in its tasks is held in, too."""
    arguments = accepted_arguments(function, name, request.copy())
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
        return read_values(returned, len(request), name)


@contextmanager
def contained(keepers: tuple[Keeper, ...] | None = None, costly: bool = False) -> Iterator[None]:
    """Hold in what the code inside raises (`sys.exit` too), changes, prints and forks.

    A Ctrl-C passes, and so do the errors by which a reward says that the run cannot go on.

    Raises:
        CallFailed: for every other exception of that code.
    """
    process = os.getpid()
    leave = os._exit
    with kept_state(keepers):
        try:
            yield
        except (RewardError, ConfigError, CallFailed):
            raise
        except BaseException as error:
            if interruption() is not None or _is_cancelled(error):
                raise
            raise failure_of(error, costly) from error
        finally:
            if os.getpid() != process:  # a forked child came back; the run is its parent's
                leave(0)


def failure_of(error: BaseException, costly: bool = False) -> CallFailed:
    """The exception as data: its reason, its last frame, its whole traceback."""
    place = trace = ""
    with suppress(Exception):  # an exception is an object of the user's, and may be a strange one
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith(_NOT_THEIRS)
        ]
        place = printable(f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}") if frames else ""
        trace = "".join(traceback.format_exception(error))[-TRACE_CHARACTERS:]
    return CallFailed(reason_of(error), place, trace, costly or _is_of_a_server(error))


def _is_of_a_server(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, says that a connection or a server failed."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if isinstance(error, ConnectionError) or packages & CLIENTS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_cancelled(error: BaseException) -> bool:
    """Whether the task itself is being cancelled, which is no failure of the function."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0


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
