"""One way to run a user's code, here and in a worker: with lists of its own, and whatever it does held in."""

import asyncio
import hashlib
import inspect
import itertools
import random
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from nonpareil.records import ScoreRequest, Scores
from nonpareil.remote import run_coroutine
from nonpareil.rewards.functions.trl_signature import accepted_arguments, read_values
from nonpareil.user_code.contained import CallFailed, contained, failure_of
from nonpareil.user_code.kept_state import Keeper, interruption


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
