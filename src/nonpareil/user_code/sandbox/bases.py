"""A sandbox's folder among the temporary ones: held while a process uses it, swept away once none does.

The kernel lets go of what a process held however it ended, so a folder that a killed run left is known as such.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

PREFIX = "nonpareil-sandbox-"
YOUNG_SECONDS = 60.0
"""A folder that was just made may not be held yet."""


def held_folder() -> tuple[str, int]:
    """A new folder, and the descriptor that holds it; those that nobody holds any more are deleted first."""
    sweep()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return folder, descriptor


def sweep() -> None:
    """Delete the folders of killed sandboxes: this user's, of which no living process knows. What fails is left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _is_old_and_ours(descriptor) and not _is_named_by_a_process(folder):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _is_old_and_ours(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    private = stat.S_IMODE(status.st_mode) == 0o700  # as it was made
    return private and status.st_uid == os.geteuid() and time.time() - status.st_mtime > YOUNG_SECONDS


def _is_named_by_a_process(folder: Path) -> bool:
    """Whether a server was started for it: one of an earlier version, which held nothing."""
    named = os.fsencode(str(folder))
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if named in process.read_bytes().split(b"\0"):
                return True
    return False
