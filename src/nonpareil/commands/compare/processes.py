"""Child processes of a comparison: logged, measured, stopped with it; one comparison a folder at a time."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonpareil.commands.compare import launch
from nonpareil.folders import writing

LAST_LINES = 15
OWNER = "compare"
FILES = (
    *("comparison.json", "comparison.md", "comparison.html", "pareto.png", "gold.png"),
    *("pairs.jsonl", "evaluation.json", "runs/*/*/settings.json", "runs/*/*/run.yaml", "runs/*/*/done.json"),
)
"""What a comparison writes right in its folder and in those of its runs, as globs."""


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    status: int
    seconds: float
    peak_memory_bytes: int


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder against other comparisons; gives the lock's file descriptor, for children to hold too.

    Raises:
        ConfigError: it is a file, cannot be written to or holds what is not ours to replace, or another comparison
            (or a run it left behind) works in it.
    """
    with writing(folder, OWNER, other="another comparison") as held:
        held.refuse_other_command()
        held.refuse_foreign(FILES)
        yield held.lock


def run_logged(command: Sequence[str], log: Path, lock: int) -> Finished:
    """Run a command to its end, its output appended to `log`.

    Ctrl-C and SIGTERM reach it as one SIGTERM, after which it is waited for (a distillation saves a checkpoint);
    a second one kills it.

    Raises:
        KeyboardInterrupt: after the command has ended.
    """
    result = log.with_name(".process.json")
    result.unlink(missing_ok=True)
    argv = [sys.executable, "-I", launch.__file__, str(result), *command]
    with log.open("ab") as output, _terminate_as_interrupt():
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,
        )
        try:
            process.wait()
        except KeyboardInterrupt:
            _stop(process)
            raise
    if not result.is_file():
        return Finished(process.returncode, 0.0, 0)
    spent: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return Finished(spent["status"], spent["seconds"], spent["peak_memory_bytes"])


def last_lines(log: Path) -> str:
    """The end of a log, where the reason of a failure stands; of a progress bar only its last state."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    shown = [line.rsplit("\r", 1)[-1].rstrip() for line in lines]
    return "\n".join([line for line in shown if line][-LAST_LINES:])


def _stop(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
