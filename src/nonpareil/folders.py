"""Output folders: one writer at a time, and where an output can be written at all.

The kernel lets go of a folder's `.lock` when every process that holds it has ended, however it ended.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from nonpareil.errors import ConfigError
from nonpareil.markers import MARKER, OutputFolder

LOCK = ".lock"
_held: list[OutputFolder] = []


@contextmanager
def writing(
    path: str | Path, command: str, *, other: str = "another process", option: str = "output_dir"
) -> Iterator[OutputFolder]:
    """Make a folder, and hold it against other processes until the end or death; nothing in it is touched.

    A folder that is a symbolic link is the folder that it points to. What `files.write_bytes` writes meanwhile is
    listed as ours. A folder that nothing was written to is taken away again where it was not there before.

    Raises:
        ConfigError: it cannot be made or written to, or another process holds it. `option` names it.
    """
    where = f"{option}={str(path)!r}"
    lock, made = _made_and_locked(Path(path), where, other)
    real = Path(os.path.realpath(path))
    folder: OutputFolder | None = None
    try:
        folder = OutputFolder(real, command, where, lock)
        folder.recover()
        _held.append(folder)
        yield folder
    finally:
        if folder in _held:
            _held.remove(folder)
        _take_away(real, made)  # before others can lock it
        os.close(lock)


@contextmanager
def writing_file(path: Path, command: str, *, option: str) -> Iterator[OutputFolder]:
    """The same for a single file, whose list lies beside it; its folder is not held.

    Raises:
        ConfigError: it is a folder, or cannot be written.
    """
    where = f"{option}={str(path)!r}"
    made: list[Path] = []
    try:
        if path.is_dir():
            raise ConfigError(f"{where} is a directory; name a file")
        made = [each for each in path.parents if not os.path.lexists(each)]
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # as `files.write_bytes` will
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW))
        probe.unlink()
    except UnicodeError:  # a locale without its letters, which the command line explains
        raise
    except (OSError, ValueError) as error:
        raise _unwritable(where, error, made) from error
    real = Path(os.path.realpath(path.parent))
    folder = OutputFolder(real, command, where, marker=f".{path.name}{MARKER}")
    _held.append(folder)
    try:
        yield folder
    finally:
        _held.remove(folder)
        _remove_empty(made)


def held_folder(path: Path) -> OutputFolder | None:
    """The innermost folder held by this process that a path lies in, or is."""
    real = Path(os.path.realpath(path.parent)) / path.name
    around = [folder for folder in _held if folder.path in (real, *real.parents)]
    return max(around, key=lambda folder: len(folder.path.parts), default=None)


def replace(temporary: Path, path: Path) -> None:
    """`os.replace`, and where this process holds the folder the file is listed first."""
    folder = held_folder(path)
    if folder is not None:
        folder.add(path, temporary)
    os.replace(temporary, path)


def discard(path: Path) -> None:
    """Delete a file of an earlier run; in a folder that this process holds only if it is ours."""
    folder = held_folder(path)
    if folder is None or folder.is_ours(path):
        path.unlink(missing_ok=True)


def is_vacant(path: Path) -> bool:
    """Whether a folder is not there, or holds nothing but our own lock and list."""
    return not path.is_dir() or all(map(is_bookkeeping, path.iterdir()))


def is_bookkeeping(path: Path) -> bool:
    """Whether a file in an output folder is its lock or its list."""
    return path.name in (LOCK, MARKER) or fnmatch(path.name, f"{MARKER}.*.tmp")


def delete_listed(path: Path, command: str) -> None:
    """Delete what a command listed as its own in a folder, and the folder where that leaves it empty.

    Raises:
        ConfigError: as `writing`, or the folder is another command's.
    """
    if not path.is_dir() or path.is_symlink():
        return
    with writing(path, command) as folder:
        folder.refuse_other_command()
        folder.delete()
        _take_away(folder.path, [folder.path])


def _made_and_locked(path: Path, where: str, other: str) -> tuple[int, list[Path]]:
    """The lock, and what was not there before: the lock's file, and folders, the innermost first."""
    made: list[Path] = []
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise ConfigError(f"{where} is a file; give a directory")
        made = [each for each in (path / LOCK, path, *path.parents) if not os.path.lexists(each)]
        path.mkdir(parents=True, exist_ok=True)
        return _take_lock(path, where, other), [Path(os.path.realpath(each)) for each in made]
    except UnicodeError:
        raise
    except (OSError, ValueError) as error:
        raise _unwritable(where, error, made[1:]) from error


def _unwritable(where: str, error: Exception, made: Sequence[Path]) -> ConfigError:
    _remove_empty(made)
    if isinstance(error, ConfigError):
        return error
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"{where} cannot be written to: {reason}; name another place")


def _remove_empty(made: Sequence[Path]) -> None:
    for folder in made:
        with suppress(OSError, ValueError):  # not empty, not there, or no path at all
            folder.rmdir()


def _take_away(path: Path, made: Sequence[Path]) -> None:
    """Undo what was made, unless something was written beside it."""
    if path in made and is_vacant(path):
        for entry in path.iterdir():
            entry.unlink()
        _remove_empty(made)
    elif path / LOCK in made and not (path / MARKER).exists():
        (path / LOCK).unlink(missing_ok=True)


def _take_lock(folder: Path, where: str, other: str) -> int:
    """Lock a folder's `.lock`, which is made where it is missing; returns the descriptor that holds it.

    Raises:
        ConfigError: `other` (in words: who it may be) holds it, or `.lock` is no plain file.
        OSError: the folder cannot be written to.
    """
    path = folder / LOCK
    while True:
        descriptor = _open_lock(path, where)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"{where} is being written to by {other}; wait for it, or give another one"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process took its file away with it: lock the one that is there now


def _open_lock(path: Path, where: str) -> int:
    """Never through a symbolic link, which may point at anybody's file, and never into what is no file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise ConfigError(f"{where}: {path.name} in it must be a plain file; remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{where}: {path.name} in it must be a plain file; remove it")
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
