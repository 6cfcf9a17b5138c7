"""What a machine does to a command: full disks, closed or narrow streams, an encoding without most letters."""

import contextlib
import errno
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from nonpareil.errors import ConfigError
from nonpareil.terminal import printable, reason_of

_REMEDIES = {
    errno.ENOSPC: "free some space, then give the same command again",
    errno.EDQUOT: "free some space, then give the same command again",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), then give the same command again",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then give the same command again",
    errno.EACCES: "give a place that you may use",
    errno.EPERM: "give a place that you may use",
    errno.EROFS: "give a place that you may use",
    errno.ENAMETOOLONG: "give a shorter name",
}


def prepare_streams() -> None:
    """Let every stream take anything: one that is closed swallows it, and letters it lacks become escapes.

    A closed descriptor would be given to the next file that is opened, and what a library prints would land in it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # in their order, so that each gets its own number back
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_words(words: Sequence[str]) -> None:
    """Refuse what this machine's encoding could not read: it cannot be written into any file either.

    Raises:
        ConfigError: naming the word.
    """
    for word in words:
        if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
            raise ConfigError(
                f"{word!r} is no text in this machine's encoding, {sys.getfilesystemencoding()}; set PYTHONUTF8=1, "
                "or rename what it names"
            )


def flush_output() -> None:
    """Write what was printed.

    Raises:
        OSError: nobody takes it, or it does not fit; nothing is left to be written at the interpreter's end.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        leave_streams()
        raise OSError(
            error.errno, f"standard output was not written: {os.strerror(error.errno or 0)}"
        ) from error


def leave_streams() -> None:
    """Let nothing more be written: the interpreter's own end would, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def failure_of(error: Exception | MemoryError) -> str:
    """What stopped a command that was not refused on purpose, on one line.

    The traceback is kept in a file where the fault may be ours.
    """
    if isinstance(error, MemoryError):
        return "this machine's memory is full; lower max_tokens_per_batch, or take a smaller model"
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):  # torch's
        reason = ". ".join(reason_of(error).split(". ")[:2])
        return (
            f"the device's memory is full ({reason}); lower max_tokens_per_batch, in a training also give "
            "gradient_checkpointing=true (distill --dry_run true tells what is needed), or take a smaller model"
        )
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        text = f"{error.object!r:.200} has no form in this machine's encoding, {error.encoding}"
        return f"{text}; set PYTHONUTF8=1"
    if isinstance(error, OSError) and error.errno is not None:
        names = [repr(name) for name in (error.filename, error.filename2) if name is not None]
        remedy = _REMEDIES.get(error.errno)
        return printable(
            " -> ".join(names)
            + (": " if names else "")
            + str(error.strerror)
            + (f"; {remedy}" if remedy else "")
        )
    kept = _keep_traceback(error)
    return f"unexpected {_named(error)}; {kept}"


def _named(error: Exception) -> str:
    reason = reason_of(error)
    return reason if reason.startswith(type(error).__name__) else f"{type(error).__name__}: {reason}"


def _keep_traceback(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="nonpareil-", suffix=".traceback.txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as full:
        return f"its traceback could not be kept ({full.strerror})"
    return f"its traceback is in {path}; if this is not your machine's doing, please report it"
