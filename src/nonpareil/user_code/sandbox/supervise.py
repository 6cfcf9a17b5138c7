"""One job: its processes forked, confined, watched and killed, its answer told; in a process of the job's own.

A program's process is forked before the tests are read: they never were in its memory.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

from nonpareil.user_code.sandbox.confine import confine, end_with_parent
from nonpareil.user_code.sandbox.judging import Tests, judge
from nonpareil.user_code.sandbox.messages import pack, receive
from nonpareil.user_code.sandbox.programs import answer_calls, run_alone
from nonpareil.user_code.sandbox.watching import Watch

PR_SET_CHILD_SUBREAPER = 36
CHANNEL, VERDICT, REPORT = 3, 4, 5
"""Descriptors of a confined process, beside its streams."""
OUTPUT_BYTES = 1 << 20
"""Of each stream of a program; one that writes more is stopped."""
FIRST_LOOK, LOOK_SECONDS = 0.002, 0.05
SWEEP_SECONDS = 5.0


class CouldNotConfine(Exception):
    """A process in which nothing was run, since it could not be confined. Says why."""


def supervise(connection: socket.socket, base: str) -> None:
    """Read a job from the connection, do it in a folder below `base`, answer. Its caller then ends this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder = tempfile.mkdtemp(prefix="program-", dir=base)
    try:
        job = receive(connection)
        answer = _Job(connection, folder, job).done()
    except CouldNotConfine as error:
        answer = {"failure": f"a program could not be confined: {error}"}
    except (OSError, MemoryError, EOFError) as error:
        answer = {"failure": f"{type(error).__name__}: {error}"}
    finally:
        sweep()
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # nobody waits for it any more
        connection.sendall(pack(answer))


class _Job:
    def __init__(self, connection: socket.socket, folder: str, job: dict[str, Any]) -> None:
        self._connection, self._folder, self._job = connection, folder, job
        self._watch = Watch(folder, job["timeout"])
        self._pipes: dict[int, bytearray] = {}
        """What was read so far, by descriptor."""

    def done(self) -> dict[str, Any]:
        """The answer."""
        return self._judged() if self._job["judge"] else self._ran()

    def _ran(self) -> dict[str, Any]:
        job, null = self._job, os.open(os.devnull, os.O_RDWR)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        with tempfile.TemporaryFile() as given:
            given.write(job["stdin"].encode(errors="surrogatepass"))
            given.seek(0)
            streams = {0: given.fileno(), 1: out_end, 2: err_end, CHANNEL: null}
            program = self._start(streams, lambda: run_alone(job["source"]))
        os.close(out_end)
        os.close(err_end)
        stop, code = self._wait(program, [out, err], OUTPUT_BYTES)
        texts = [bytes(self._pipes[end]).decode("utf-8", "replace") for end in (out, err)]
        answer = {"stop": stop, "code": code, "seconds": self._watch.seconds}
        return {**answer, "stdout": texts[0], "stderr": texts[1]}

    def _judged(self) -> dict[str, Any]:
        job, null = self._job, os.open(os.devnull, os.O_RDWR)
        theirs, ours = socket.socketpair()
        streams = {0: null, 1: null, 2: null}
        self._start({**streams, CHANNEL: theirs.fileno()}, lambda: answer_calls(job["solution"], CHANNEL))
        theirs.close()
        tests = Tests(**receive(self._connection))
        verdict, verdict_end = os.pipe()
        judge_process = self._start(
            {**streams, CHANNEL: ours.fileno(), VERDICT: verdict_end}, lambda: judge(tests, CHANNEL, VERDICT)
        )
        ours.close()
        os.close(verdict_end)
        stop, _ = self._wait(judge_process, [verdict], None)
        answer: dict[str, Any] = {"stop": stop, "seconds": self._watch.seconds, "held": []}
        for line in bytes(self._pipes[verdict]).split(b"\n")[:-1]:
            said = json.loads(line)
            answer["held"] += [said.pop("held")] if "held" in said else []
            answer.update(said)
        return answer

    def _start(self, descriptors: dict[int, int], work: Callable[[], Any]) -> int:
        """Fork a process, confine it, and have it work with these descriptors and no others."""
        report, report_end = os.pipe()
        parent = os.getpid()
        process = os.fork()
        if process == 0:
            self._live(parent, {**descriptors, REPORT: report_end}, work)
        self._watch.processes.append(process)
        os.close(report_end)
        with os.fdopen(report, "rb") as said:
            problem = said.read()
        if problem != b".":
            raise CouldNotConfine(problem.decode() or "it ended")
        return process

    def _live(self, parent: int, descriptors: dict[int, int], work: Callable[[], Any]) -> None:
        leave, report, status = os._exit, descriptors[REPORT], 1
        try:
            os.setsid()
            end_with_parent(parent)
            _keep_only(descriptors)
            report = REPORT
            os.chdir(self._folder)
            os.environ.update(HOME=self._folder, TMPDIR=self._folder)
            tempfile.tempdir = None
            random.seed(0)  # the same program, the same score
            job = self._job
            confine(self._folder, job["memory_mb"], int(job["timeout"]) + 1, job["allow_unsandboxed"])
            os.write(report, b".")
            os.close(report)
            report = -1
            status = work() or 0
        except BaseException as error:  # noqa: BLE001  (nothing may return into the supervisor's code)
            if report >= 0:
                os.write(report, f"{type(error).__name__}: {error}".encode())
        finally:
            leave(status)

    def _wait(self, process: int, pipes: list[int], most: int | None) -> tuple[str, int]:
        """Read from the pipes until the process has ended or must be stopped; why it was, and its exit status."""
        self._pipes = {end: bytearray() for end in pipes}
        poll = select.poll()
        for end in (*pipes, self._connection.fileno()):
            poll.register(end, select.POLLIN)
        stop, code, pause = "", -signal.SIGKILL, FIRST_LOOK
        while not stop:
            for end, _ in poll.poll(pause * 1000):
                if end == self._connection.fileno():  # nothing more is due from there: it was closed
                    stop = "timeout"
                elif not self._read(end):
                    poll.unregister(end)
            pause = min(2 * pause, LOOK_SECONDS)
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                break
            if not all(self._has_room(end, most) for end in pipes):
                stop = "output"
            stop = stop or self._watch.stop()
        for other in self._watch.processes:
            if other != process or stop:
                _kill(other)
        while any(self._read(end) for end, _ in poll.poll(0) if end in pipes and self._has_room(end, most)):
            pass
        return stop, code

    def _has_room(self, end: int, most: int | None) -> bool:
        return most is None or len(self._pipes[end]) <= most

    def _read(self, end: int) -> int:
        content = os.read(end, 1 << 16)
        self._pipes[end] += content
        return len(content)


def _keep_only(descriptors: dict[int, int]) -> None:
    """These under their numbers, and no others open."""
    copies = {number: fcntl.fcntl(each, fcntl.F_DUPFD, 16) for number, each in descriptors.items()}
    for number, copy in copies.items():
        os.dup2(copy, number)
    kept = sorted(descriptors)
    for low, up in zip([-1, *kept], [*kept, 1 << 16], strict=True):
        if low + 1 < up:  # of none, it would close all
            os.closerange(low + 1, up)


def _kill(process: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(process, 0)


def sweep() -> None:
    """Kill what is left of a program: where forks could not be refused, its children have become ours."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for process in _descendants():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)


def _descendants() -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with (
                contextlib.suppress(OSError, IndexError),
                open(f"/proc/{entry}/stat", encoding="ascii") as file,
            ):
                parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
    found, new = [os.getpid()], [os.getpid()]
    while new:
        new = [process for process, parent in parents.items() if parent in new]
        found += new
    return found[1:]
