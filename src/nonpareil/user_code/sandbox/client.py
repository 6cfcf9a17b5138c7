"""`Sandbox`: programs of a model, run one process each, within limits, by a small server that forks them."""

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from nonpareil.errors import ConfigError, RewardError
from nonpareil.user_code.sandbox.bases import held_folder
from nonpareil.user_code.sandbox.confine import environment, missing_cuts
from nonpareil.user_code.sandbox.judging import Tests
from nonpareil.user_code.sandbox.messages import pack, unpack
from nonpareil.user_code.sandbox.watching import PATIENCE

SOURCE = Path(__file__).parents[3]
"""The folder that the package is imported from."""
START = (
    "import sys; sys.path.insert(0, sys.argv[3])\n"
    "from nonpareil.user_code.sandbox.server import main\n"
    "sys.path.remove(sys.argv[3]); main(int(sys.argv[1]), sys.argv[2])"
)
START_SECONDS, ANSWER_SECONDS, SETTLE_SECONDS = 60.0, 30.0, 1.0
TRIES = 2
"""Of a job whose supervisor was killed from outside."""
STARVED = "the machine was too busy to run the program"


@dataclass(frozen=True)
class Ran:
    """What a program did."""

    stdout: str
    stderr: str
    code: int
    """Its exit status; minus the signal's number where it was killed."""
    seconds: float
    """By the clock."""
    stopped: str
    """Why it was stopped (`timeout`, `output`, `files`, `threads`); "" where it ended by itself."""


@dataclass(frozen=True)
class Verdict:
    """What tests found of a solution."""

    held: int
    """How many of its tests held."""
    total: int
    """How many there are."""
    reason: str
    """Why not all of them held."""
    failure: str | None
    """Why nothing can be said of the solution: the tests are broken, or the sandbox failed. None where it can."""

    @property
    def passed(self) -> bool:
        """Whether all tests held."""
        return self.failure is None and not self.reason and 0 < self.total == self.held


class Sandbox:
    """Runs programs, several at once, each in a process of its own that can do nothing but compute.

    It has no network, no other process, no environment, no file but Python's own library and the plain files of an
    empty folder that is deleted after it, and limits of time, memory, threads, files and output. The kernel sees to
    it (Landlock and seccomp); no privileges and no containers are needed.

    Args:
        timeout: seconds that a program may run or sleep; time in which it is kept from a processor by others is not
            counted, up to 30 times the timeout by the clock.
        memory_mb: of address space, for each process.
        workers: programs at once; by default one per processor that this process may use.
        allow_unsandboxed: run programs also where the kernel cannot cut them off, with the limits that are left.

    Raises:
        ConfigError: a setting that cannot work, or a machine that cannot cut programs off.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        memory_mb: int = 1024,
        workers: int | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        """See the class."""
        if not 0 < timeout < 86400:
            raise ConfigError(f"timeout={timeout!r} must be a positive number of seconds, a day at most")
        if memory_mb < 64:
            raise ConfigError(f"memory_mb={memory_mb!r} must be at least 64: Python itself takes 40")
        if workers is not None and workers < 1:
            raise ConfigError(f"workers={workers!r} must be at least 1")
        if (missing := missing_cuts()) and not allow_unsandboxed:
            raise ConfigError(
                f"programs cannot be cut off here from {' and '.join(missing)}; run on such a kernel, or set "
                "allow_unsandboxed=true to run a model's programs with your own rights"
            )
        self._limits = {"timeout": timeout, "memory_mb": memory_mb, "allow_unsandboxed": allow_unsandboxed}
        self._timeout, self._workers = timeout, workers or len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def run(self, source: str, *, stdin: str = "") -> Ran:
        """Run a program, as `python program.py` would.

        Raises:
            RewardError: the sandbox failed, which says nothing of the program.
        """
        job = {**self._limits, "judge": False, "source": source, "stdin": stdin}
        answer = self._do([[job]])[0]
        stopped = answer.get("stop")
        if failure := STARVED if stopped == "starved" else answer.get("failure"):
            raise RewardError(f"the sandbox failed: {failure}")
        return Ran(answer["stdout"], answer["stderr"], answer["code"], answer["seconds"], stopped or "")

    def judge(self, pairs: Sequence[tuple[str, Tests]]) -> list[Verdict]:
        """What tests find of the solution in each answer (`completions.program_of`): of every pair, in order."""
        jobs = []
        for answer, tests in pairs:
            solution = {"answer": answer, "names": tests.names, "start": tests.start}
            jobs.append([{**self._limits, "judge": True, "solution": solution}, asdict(tests)])
        return [_verdict(answer) for answer in self._do(jobs)]

    def close(self) -> None:
        """End the server and all that it runs; the next call starts another."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        """Leave no process behind."""
        with contextlib.suppress(Exception):  # the interpreter may be half gone
            self.close()

    def _do(self, jobs: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The answers of all jobs, `workers` of them under way at a time."""
        answers: list[dict[str, Any]] = [{} for _ in jobs]
        waiting = deque((number, 1) for number in range(len(jobs)))
        with selectors.DefaultSelector() as selector:
            try:
                while waiting or selector.get_map():
                    while waiting and len(selector.get_map()) < self._workers:
                        self._begin(selector, jobs, *waiting.popleft())
                    for key, _ in selector.select(1.0):
                        key.data.read()
                    for key in list(selector.get_map().values()):
                        job: _UnderWay = key.data
                        if (answer := job.answer()) is None:
                            continue
                        selector.unregister(job.connection)
                        job.connection.close()
                        if "again" in answer and job.tried < TRIES:
                            self._running().settle()
                            waiting.append((job.number, job.tried + 1))
                        answers[job.number] = answer
            finally:  # an interruption: what runs is killed as its connection closes
                for key in list(selector.get_map().values()):
                    key.data.connection.close()
        return answers

    def _begin(self, selector: Any, jobs: Sequence[list[dict[str, Any]]], number: int, tried: int) -> None:
        connection = self._running().connect()
        with contextlib.suppress(OSError):  # it ended: its answer will say so
            for message in jobs[number]:
                connection.sendall(pack(message))
        deadline = time.monotonic() + PATIENCE * self._timeout + ANSWER_SECONDS
        selector.register(connection, selectors.EVENT_READ, _UnderWay(number, tried, connection, deadline))

    def _running(self) -> "_Server":
        with self._lock:
            if self._server is None or not self._server.is_ours():
                if self._server is not None:
                    self._server.close()
                self._server = _Server()
            return self._server


@dataclass
class _UnderWay:
    """A job that was begun."""

    number: int
    tried: int
    connection: socket.socket
    deadline: float
    content: bytes = b""
    ended: bool = False

    def read(self) -> None:
        try:
            piece = self.connection.recv(1 << 20)
        except OSError:
            piece = b""
        self.content += piece
        self.ended = not piece

    def answer(self) -> dict[str, Any] | None:
        """None while it is not there."""
        if self.ended:
            return unpack(self.content) or {"failure": "its supervisor was killed", "again": True}
        return {"failure": "no answer in time"} if time.monotonic() > self.deadline else None


class _Server:
    """The process that forks, and its end of the socket on which jobs are handed over."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        try:
            self.base, self._held = held_folder()
        except OSError as error:  # no folder for temporary files that can be written to
            raise RewardError(f"the sandbox did not start: {error}") from error
        self._process: subprocess.Popen[bytes] | None = None
        self._control, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as errors, theirs:
            try:
                self._start(theirs.fileno(), errors)
                theirs.close()
                self._control.settimeout(START_SECONDS)
                started, said = self._control.recv(1) == b"+", ""
            except OSError as error:  # an interpreter that this user may not run, or one that says nothing
                started, said = False, str(error)
            if not started:
                self.close()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().split("\n")[-1] or said
                raise RewardError(f"the sandbox did not start: {said or 'no answer'}")

    def _start(self, control: int, errors: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-c", START, str(control), self.base, str(SOURCE)],
            pass_fds=[control, self._held],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd="/",
            env=environment(),
            start_new_session=True,  # Ctrl-C is for us
        )

    def is_ours(self) -> bool:
        """Whether it runs, and was started by this process: one that forked from it starts its own."""
        return self._owner == os.getpid() and self._process is not None and self._process.poll() is None

    def settle(self) -> None:
        """Wait until its end can be seen, where it was killed with its supervisor."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(SETTLE_SECONDS)

    def connect(self) -> socket.socket:
        """A connection to a new supervisor."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # it has just ended: the connection then says so
            socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        return ours

    def close(self) -> None:
        """It ends, with what it runs, when its socket is closed."""
        self._control.close()
        if self._owner == os.getpid():
            if self._process is not None:
                try:
                    self._process.wait(ANSWER_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            shutil.rmtree(self.base, ignore_errors=True)  # it does so itself, unless it was killed
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _verdict(answer: dict[str, Any]) -> Verdict:
    stop, total, held = answer.get("stop", ""), answer.get("total", 0), len(answer.get("held", ()))
    failure = answer.get("failure") or (STARVED if stop == "starved" else None)
    if broken := answer.get("broken"):
        failure = f"the tests are broken: {broken}"
    reason = stop or answer.get("end", "the tests ended without a verdict")
    return Verdict(held, max(total, 1), reason, failure)
