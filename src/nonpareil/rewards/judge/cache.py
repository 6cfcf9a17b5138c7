"""A judge's answers on disk: JSON lines, appended as they come, so that no answer is paid for twice."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from nonpareil.errors import ConfigError

START = '{"key": '


class AnswerCache:
    """What the judge said, by a hash of all that it was asked with.

    A kill loses no answer that was kept: each is one appended line, handed to the disk before the next step. A
    line that a power cut tore is passed over and asked again. Several processes may append to one file; each
    reads the others' answers when it starts.

    Args:
        path: None keeps the answers in memory only.
        is_usable: of an answer in the file; others are passed over, so that they are asked again.

    Raises:
        ConfigError: a file that holds something else, or that cannot be read or written.
    """

    def __init__(self, path: str | Path | None, is_usable: Callable[[str], bool] = bool) -> None:
        """See the class."""
        self._is_usable = is_usable
        self._path = None if path is None else Path(path).expanduser()
        self._answers: dict[str, str] = {}
        self._file: int | None = None
        if self._path is not None:
            _check_writable(self._path)
            if self._path.exists():
                self._read(self._path)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """What the judge said, or None where it was not asked."""
        return self._answers.get(key)

    def keep(self, key: str, answer: str, judge: str) -> None:
        """Keep an answer, in memory and on disk; the judge's name is for people who read the file."""
        self._answers[key] = answer
        if self._path is None:
            return
        # In ASCII: no character within a text ends the line for another program.
        line = json.dumps({"key": key, "answer": answer, "judge": judge}) + "\n"
        file = self._opened(self._path)
        # One write to a file opened for appending: the lines of two processes do not mix.
        os.write(file, line.encode())
        os.fsync(file)

    def close(self) -> None:
        """Close the file; the next answer opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        """Leave no open file behind."""
        self.close()

    def _opened(self, path: Path) -> int:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")  # behind a torn line
        return self._file

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise ConfigError(f"judge_cache={str(path)!r} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            if not line.startswith(START[: len(line)]):
                raise ConfigError(
                    f"judge_cache={str(path)!r} holds something other than a judge's answers (line {number}); "
                    "give another file"
                )
            try:
                kept = json.loads(line)
                key, answer = kept["key"], kept["answer"]
            except (ValueError, KeyError, RecursionError):  # torn or damaged; the question is asked again
                continue
            if isinstance(key, str) and isinstance(answer, str) and self._is_usable(answer):
                self._answers[key] = answer


def _check_writable(path: Path) -> None:
    """Before the first answer is paid for."""
    place = next(each for each in (path, *path.parents) if each.exists())
    usable = path.is_file() if place == path else place.is_dir()
    if not usable or not os.access(place, os.W_OK):
        raise ConfigError(
            f"judge_cache={str(path)!r} cannot be written: {str(place)!r} is in the way; give a file"
        )


def question_key(*parts: str) -> str:
    """A hash of the parts and of the borders between them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
