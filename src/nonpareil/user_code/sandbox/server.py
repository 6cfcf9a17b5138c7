"""A small clean process that forks one supervisor per job: nothing to import again, and nothing of the user's."""

import contextlib
import gc
import importlib
import os
import shutil
import signal
import socket
import sys

from nonpareil.user_code.sandbox.confine import end_with_parent, readable
from nonpareil.user_code.sandbox.supervise import supervise

PRELOADED = (
    *(
        "bisect",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
    ),
    *("hashlib", "heapq", "inspect", "itertools", "math", "operator", "re", "statistics", "string", "typing"),
)
"""What programs import most: there already in every fork."""


def main(control: int, base: str) -> None:
    """Fork a supervisor for each connection that is handed over; end with them when the other end is closed."""
    listener = socket.socket(fileno=control)
    sys.argv = ["program.py"]
    for name in PRELOADED:
        importlib.import_module(name)
    readable()
    gc.freeze()  # shared with every fork
    supervisors: set[int] = set()
    listener.send(b"+")
    while True:
        data, descriptors, _, _ = socket.recv_fds(listener, 1, 1)
        if not data:
            break
        supervisors -= _ended(supervisors)
        supervisors.add(_fork(listener, descriptors[0], base))
        os.close(descriptors[0])
    for process in supervisors - _ended(supervisors):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)  # and its programs with it
            os.waitpid(process, 0)
    shutil.rmtree(base, ignore_errors=True)


def _fork(listener: socket.socket, connection: int, base: str) -> int:
    server = os.getpid()
    if process := os.fork():
        return process
    try:
        end_with_parent(server)
        listener.close()
        supervise(socket.socket(fileno=connection), base)
    finally:
        os._exit(0)


def _ended(processes: set[int]) -> set[int]:
    return {process for process in processes if os.waitpid(process, os.WNOHANG)[0]}
