"""`contained()`: a user's code runs within limits. What it raises, `sys.exit` included, becomes a `CallFailed`.

What it changes of this process is given back by `kept_state`, and what it forks never returns into our code.
"""

import asyncio
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nonpareil.errors import ConfigError, RewardError
from nonpareil.terminal import kept_reason, printable
from nonpareil.user_code.kept_state import Keeper, interruption, kept_state

TRACE_CHARACTERS = 20_000
"""Of a traceback, its end: what is kept."""
CLIENTS = frozenset(
    (
        *("aiohttp", "anthropic", "botocore", "google", "grpc", "http", "httpcore", "httpx", "litellm"),
        *("mistralai", "openai", "requests", "socket", "ssl", "urllib", "urllib3"),
    )
)
"""Packages that talk to servers; an exception of theirs is a server's failure."""
_NOT_THEIRS = (f"{Path(__file__).parents[1]}{os.sep}", "<frozen ")
"""Files whose frames are not those of the user's code."""


class CallFailed(Exception):
    """A call that gave no values: it raised, ran out of time or took its process with it. Says which."""

    def __init__(self, reason: str, place: str = "", trace: str = "", costly: bool = False) -> None:
        """`place`: the last frame, file:line in function. `costly`: a server was asked; asking again may cost."""
        super().__init__(reason, place, trace, costly)
        self.reason, self.place, self.trace, self.costly = reason, place, trace, costly

    def __str__(self) -> str:
        return self.reason


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
    return CallFailed(_reason_of(error), place, trace, costly or _is_of_a_server(error))


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


def _reason_of(error: BaseException) -> str:
    """An exception in one line, as it is kept: its type, and the first line of what it says."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001  (an exception is an object of the user's)
        said = "(its message cannot be read)"
    return kept_reason(f"{type(error).__name__}: {said}".split("\n")[0].removesuffix(": "))
