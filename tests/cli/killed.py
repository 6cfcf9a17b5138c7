"""A command, killed at its k-th file operation and taken up again; a process of its own forks each run.

Reads lines of JSON from stdin, `{"argv": [...], "kill": k or null}`, and answers each with
`{"status": ..., "operations": [...]}`. Forked, a run need not import torch first.
"""

import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch

from nonpareil.cli.main import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Operations:
    """Counts what changes files below a folder, and kills the process at the k-th, before it is done.

    A file that is written also counts while it is half there, and when it is.
    """

    def __init__(self, folder: str, kill: int | None):
        self.folder, self.kill = os.path.abspath(folder), kill
        self.seen: list[str] = []

    def note(self, what: str, path: Any) -> None:
        """One operation."""
        try:
            name = os.path.abspath(os.fsdecode(path))
        except TypeError:  # a file descriptor
            return
        if not name.startswith(self.folder):
            return
        self.seen.append(f"{what} {os.path.relpath(name, self.folder)}")
        if len(self.seen) == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, arguments: tuple) -> None:
        """What Python itself does."""
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self.note("open", arguments[0])
        elif event in CHANGES:
            self.note(event, arguments[0])

    def around(self, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        """A writer of torch's or safetensors', which Python does not hear."""

        def watched(*arguments: Any, **options: Any) -> Any:
            path = arguments[place]
            self.note("before", path)
            result = write(*arguments, **options)
            if len(self.seen) + 1 == self.kill:
                os.truncate(path, os.path.getsize(path) // 2)
            self.note("amid", path)
            self.note("after", path)
            return result

        return watched


def amid_python_writes(operations: Operations) -> None:
    """Kill also when a file was opened, and holds half of what is to be written."""
    from nonpareil import files

    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        operations.note("written", path)
        fsync(descriptor)

    files.os.fsync = watched


def run(argv: list[str], folder: str, kill: int | None, answer: int) -> None:
    """In the forked process."""
    operations = Operations(folder, kill)
    sys.addaudithook(operations.hear)
    torch.save = operations.around(torch.save, 1)
    safetensors.torch.save_file = operations.around(safetensors.torch.save_file, 1)
    import transformers.modeling_utils

    from nonpareil.models import anchors

    anchors.save_file = safetensors.torch.save_file
    transformers.modeling_utils.safe_save_file = operations.around(
        transformers.modeling_utils.safe_save_file, 1
    )
    amid_python_writes(operations)
    status = main(argv)
    os.write(answer, json.dumps({"status": status, "operations": operations.seen}).encode())


def serve() -> None:
    """One run after another."""
    out = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 2)
            os.dup2(log, 1)
            code = 1
            try:
                run(asked["argv"], asked["folder"], asked["kill"], write)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        _, ended = os.waitpid(child, 0)
        told = json.loads(said) if said else {"status": os.waitstatus_to_exitcode(ended), "operations": []}
        os.write(out, (json.dumps(told) + "\n").encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for module in (
        "nonpareil.commands.distill.command",
        "nonpareil.commands.search",
        "nonpareil.training",
        "nonpareil.rollouts",
        "nonpareil.rollouts.segments.kept",
        "peft",
        "tensorboard",
    ):
        importlib.import_module(module)
    gc.freeze()  # what is imported need not be looked through at each collection
    serve()
