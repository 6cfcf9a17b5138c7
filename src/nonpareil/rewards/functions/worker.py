"""A process that runs one reward function and can be killed: a `while True` must not hang the job."""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.records import ScoreRequest, Scores
from nonpareil.rewards.functions.calling import call
from nonpareil.rewards.functions.training_log import StateReceiver, StateSender
from nonpareil.rewards.functions.trl_signature import is_given_state, unwrapped
from nonpareil.user_code.contained import CallFailed, contained
from nonpareil.user_code.kept_state import IN_A_WORKER, WHILE_IMPORTING
from nonpareil.user_code.load import load_file

START_SECONDS = 300.0
"""How long a worker may take to import the function's module; torch alone can take half a minute."""

REMEDY = "put it in a module or file of its own and name it as pkg.mod.fn or path/to/file.py:fn"


class Worker:
    """Runs a function in a process of its own, started when first needed and again after each kill.

    The process leads a group of its own: what the function starts goes with it, at a kill and when this one dies.
    """

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
        self._is_given_state = is_given_state(function)
        self._states = StateSender()
        self._process: Any = None
        self._connection: Connection | None = None
        self._life: Connection | None = None
        """Open as long as this process lives."""

    def start(self) -> None:
        """Start the process, where it does not run yet.

        Raises:
            RewardError, ConfigError: the function cannot be imported there.
        """
        self._running()

    def call(self, request: ScoreRequest, timeout: float) -> Scores:
        """The function's scores.

        Raises:
            CallFailed: it raised, took more than `timeout` seconds or ended its process.
            RewardError, ConfigError: it broke its contract, or cannot be imported by another process.
        """
        try:
            connection = self._running()
            state = request.trainer_state
            packed = self._states.pack(state) if self._is_given_state else None
            connection.send((replace(request, trainer_state=state is not None or None), packed))
            if not connection.poll(timeout):
                raise CallFailed(f"timed out after {timeout:g} s")
            kind, answer = connection.recv()
        except (EOFError, ConnectionError, pickle.UnpicklingError) as error:
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
        raise answer

    def stop(self) -> None:
        """Kill the process and what it started; the next call starts another."""
        if self._process is not None:
            with contextlib.suppress(OSError):  # it has not yet made its group, or all of it is gone
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._process = None
        for connection in (self._connection, self._life):
            if connection is not None:
                connection.close()
        self._connection = self._life = None
        self._states = StateSender()

    def __del__(self) -> None:
        """Leave no process behind."""
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.stop()

    def _running(self) -> Connection:
        if self._connection is not None:
            return self._connection
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in a broken state
        self._connection, theirs = context.Pipe()
        their_life, self._life = context.Pipe(duplex=False)
        self._process = context.Process(target=serve, args=(theirs, their_life, *self._payload), daemon=True)
        self._process.start()
        theirs.close()
        their_life.close()
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


def serve(
    connection: Connection, life: Connection, pickled: bytes, module: str | None, file: str | None, name: str
) -> None:
    """The worker's life: find the function, say so, then answer one request after another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it kills us
    os.setsid()
    _end_with(life)
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # stdout is the job's own
    try:
        with contained(WHILE_IMPORTING):
            function = _unpickle(pickled, module, file)
    except (CallFailed, ConfigError, RewardError) as problem:
        connection.send(str(problem))
        return
    connection.send(None)
    states = StateReceiver()
    while True:
        try:
            request, packed = connection.recv()
        except EOFError:
            return
        if packed is not None:
            request = replace(request, trainer_state=states.unpack(packed))
        connection.send(_answer(function, request, name))


def _end_with(life: Connection) -> None:
    """Leave a process behind that kills our group as soon as the job, which holds the pipe's other end, is gone.

    It runs no code of others, so it also acts while a reward holds this process in a loop of C. It is nobody's
    child, for a reward that waits for all of its own.
    """
    if child := os.fork():
        os.waitpid(child, 0)
        life.close()
        return
    if os.fork():
        os._exit(0)
    pipe = life.fileno()
    os.closerange(0, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


def _answer(function: Callable[..., Any], request: ScoreRequest, name: str) -> tuple[str, Any]:
    try:
        return "scores", call(function, request, name, IN_A_WORKER)
    except (CallFailed, RewardError, ConfigError) as error:
        # Of our own class, which the parent can unpickle, and without frames.
        kind = next(kind for kind in (CallFailed, RewardError, ConfigError) if isinstance(error, kind))
        return "error", kind(*error.args) if kind is CallFailed else kind(str(error))


def _unpickle(pickled: bytes, module: str | None, file: str | None) -> Callable[..., Any]:
    """Import by name where that works, else the module's file under the same name."""
    if module and module not in sys.modules and file:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            load_file(Path(file), module)
    return pickle.loads(pickled)
