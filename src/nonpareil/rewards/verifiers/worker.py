"""A process that judges completions one at a time and can be killed: none hangs the job or takes its memory."""

import importlib
import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from nonpareil.errors import ConfigError
from nonpareil.rewards.verifiers.base import Row, Verifier, contained_verdict
from nonpareil.settings import settings_of
from nonpareil.terminal import reason_of

START_SECONDS = 300.0
"""How long the process may take to import what it judges with."""
MEMORY = 4 * 1024**3
"""Bytes that it may map; what asks for more (9**9**9) fails, and the machine stays as it is."""
_GRACE = 5.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from nonpareil.rewards.verifiers.worker import serve; serve(int(sys.argv[1]))"
)


class JudgingProcess:
    """Judges rows with one verifier in a process of its own, started when first needed and again after each kill.

    It is no `multiprocessing` child, which would import the user's script anew: a script needs no `__main__` guard.
    """

    def __init__(self, verifier: Verifier, timeout: float) -> None:
        """`timeout`: seconds for one row."""
        cls = type(verifier)
        if cls.__module__ == "__main__" or "<" in cls.__qualname__:
            raise ConfigError(
                f"verifier {verifier.name!r}: {cls.__qualname__} must stand in a module that another process can "
                "import"
            )
        settings = {name: getattr(verifier, name) for name in settings_of(cls)}
        self._name, self._timeout = verifier.name, timeout
        self._made_of = (cls.__module__, cls.__qualname__, settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def judge(self, rows: Sequence[Row]) -> list[tuple[float | None, str | None, str]]:
        """As `contained_verdict`, for each row; one that took too long or ended the process is null.

        Raises:
            ConfigError: what judges cannot be imported there.
        """
        verdicts: list[tuple[float | None, str | None, str]] = []
        while len(verdicts) < len(rows):
            verdicts += self._judge_until_lost(rows[len(verdicts) :])
        return verdicts

    def stop(self) -> None:
        """Kill the process and what it started; the next call starts another."""
        if self._process is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def __del__(self) -> None:
        """Leave no process behind."""
        with suppress(Exception):  # the interpreter may be half gone
            self.stop()

    def _judge_until_lost(self, rows: Sequence[Row]) -> list[tuple[float | None, str | None, str]]:
        """The verdicts of the rows, up to the first that cost the process."""
        verdicts: list[tuple[float | None, str | None, str]] = []
        try:
            connection = self._running()
            connection.send((rows, self._timeout))
            while len(verdicts) < len(rows):
                if not connection.poll(self._timeout):
                    verdicts.append((None, f"timed out after {self._timeout:g} s", ""))
                    self.stop()
                    break
                verdicts.append(connection.recv())
        except (EOFError, OSError, pickle.UnpicklingError):
            reason = self._reason_of_death()
            self.stop()
            verdicts.append((None, reason, ""))
        except BaseException:  # Ctrl-C: an answer that still comes must not be taken for the next call's
            self.stop()
            raise
        return verdicts

    def _reason_of_death(self) -> str:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return f"its process died (exit code {self._process.returncode})"

    def _running(self) -> Connection:
        if self._connection is not None and self._process is not None:
            if self._process.poll() is None:
                return self._connection
            self.stop()  # it was killed while it had nothing to do: no completion's fault
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the job's own
                start_new_session=True,  # Ctrl-C is the job's to handle
                env={
                    **os.environ,
                    "PYTHONHASHSEED": "0",
                },  # the order of sets decides what sympy simplifies to
            )
        self._connection = ours
        try:
            ours.send(self._made_of)
            if not ours.poll(START_SECONDS):
                raise ConfigError(f"reward {self._name!r} was not imported within {START_SECONDS:g} s")
            problem = ours.recv()
        except (EOFError, OSError) as error:
            reason = self._reason_of_death()
            self.stop()
            raise ConfigError(f"reward {self._name!r} cannot be started: {reason}") from error
        except BaseException:
            self.stop()
            raise
        if problem is not None:
            self.stop()
            raise ConfigError(f"reward {self._name!r} cannot be started: {problem}")
        return ours


def serve(descriptor: int) -> None:
    """The process's life: make the verifier, say so, then judge row after row until the job is gone."""
    logging.disable(logging.CRITICAL)  # what goes wrong is a reason, and is counted
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):
        module, name, settings = connection.recv()
        try:
            verifier = _made(module, name, settings)
        except Exception as error:  # noqa: BLE001  (a library of others is imported)
            connection.send(reason_of(error))
            return
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = MEMORY if hard == resource.RLIM_INFINITY else min(hard, MEMORY)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        connection.send(None)
        while True:
            rows, timeout = connection.recv()
            for row in rows:
                # The kernel ends it where the job is gone that would: no handler runs, so no loop of C delays it.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, timeout + _GRACE)
                verdict = contained_verdict(verifier, row)
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send(verdict)


def _made(module: str, name: str, settings: dict[str, Any]) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    verifier = found(**settings)
    verifier.prepare()
    return verifier
