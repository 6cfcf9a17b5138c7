"""A process that runs one reward function and can be killed: a `while True` must not hang the job."""

import asyncio
import contextlib
import importlib
import inspect
import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.load import load_file
from nonpareil.rewards.values import accepted_arguments, read_values, reason_of, unwrapped

START_SECONDS = 300.0
"""How long a worker may take to import the function's module; torch alone can take half a minute."""

REMEDY = "put it in a module or file of its own and name it as pkg.mod.fn or path/to/file.py:fn"


class CallFailed(Exception):
    """A call that gave no values: it raised, ran out of time or took the process with it. Says which."""


class Worker:
    """Runs a function in a process of its own, started when first needed and again after each kill."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        """Raises ConfigError where the function cannot be sent to another process."""
        self._name = name
        module = sys.modules.get(getattr(unwrapped(function), "__module__", None) or "")
        try:
            pickled = pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"timeout needs a reward function that another process can import, and {name!r} cannot be "
                f"sent there ({error}); {REMEDY}"
            ) from error
        self._payload = (pickled, getattr(module, "__name__", None), getattr(module, "__file__", None), name)
        self._process: Any = None
        self._connection: Connection | None = None

    def call(self, request: ScoreRequest, timeout: float) -> Scores:
        """The function's scores.

        Raises:
            CallFailed: it raised, took more than `timeout` seconds or ended its process.
            RewardError, ConfigError: it broke its contract, or cannot be imported by another process.
        """
        try:
            connection = self._running()
            connection.send(request)
            if not connection.poll(timeout):
                raise CallFailed(f"timed out after {timeout:g} s")
            kind, answer = connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(1)
            code = self._process.exitcode
            self.stop()
            raise CallFailed(f"the worker process died (exit code {code})") from error
        except BaseException:
            # Timed out or interrupted: an answer may still come, and must not be taken for the next call's.
            self.stop()
            raise
        if kind == "scores":
            return answer
        if kind == "contract":
            raise answer
        raise CallFailed(answer)

    def stop(self) -> None:
        """Kill the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        """Leave no process behind."""
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.stop()

    def _running(self) -> Connection:
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in a broken state
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *self._payload), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not self._connection.poll(START_SECONDS):
                raise RewardError(
                    f"reward function {self._name!r} was not imported within {START_SECONDS:g} s"
                )
            problem = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise ConfigError(
                f"the worker process of reward function {self._name!r} ended while starting; a script that "
                'scores with a timeout must keep its own work under `if __name__ == "__main__":`'
            ) from error
        if problem is not None:
            raise ConfigError(f"reward function {self._name!r} fails in a worker: {problem}; {REMEDY}")
        return self._connection


def serve(connection: Connection, pickled: bytes, module: str | None, file: str | None, name: str) -> None:
    """The worker's life: find the function, say so, then answer one request after another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it kills us
    try:
        function = _unpickle(pickled, module, file)
    except Exception as error:  # noqa: BLE001  (whatever the user's module raises is told to the parent)
        connection.send(reason_of(error))
        return
    connection.send(None)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(_answer(function, request, name))


def _answer(function: Callable[..., Any], request: ScoreRequest, name: str) -> tuple[str, Any]:
    try:
        returned = function(**accepted_arguments(function, name, request))
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        return "scores", read_values(returned, len(request), name)
    except (RewardError, ConfigError) as error:
        return "contract", error
    except Exception as error:  # noqa: BLE001  (a failing reward is a null with this reason)
        return "failed", reason_of(error)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _unpickle(pickled: bytes, module: str | None, file: str | None) -> Callable[..., Any]:
    """Import by name where that works, else the module's file under the same name."""
    if module and module not in sys.modules and file:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            load_file(Path(file), module)
    return pickle.loads(pickled)
