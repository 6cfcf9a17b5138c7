"""The list of what we wrote in an output folder, `.nonpareil.json`. Nothing else there is ever deleted.

A file is listed before it gets its name, so that a kill at any moment leaves no file of ours that is not listed.
It is ours only while it is as the list has it: of the same size, and of the same time of modification or, in a copy
of the folder, of the same content. One that was changed or replaced since belongs to whoever did that. Symbolic
links below the folder are never followed.
"""

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from nonpareil.checksums import file_sha256
from nonpareil.errors import ConfigError

MARKER = ".nonpareil.json"
_ABOUT = (
    "The files that nonpareil wrote here, as bytes:time of modification in ns:SHA-256; it deletes no others."
)
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""What a file that is written in one step is called until it is whole."""
_CHECKPOINT_FILES = (
    *("*.json", "*.jsonl", "*.safetensors", "*.pt", "*.pth", "*.bin", "*.model", "*.jinja"),
    *("merges.txt", "vocab.txt"),
)
"""What a kill amid a checkpoint may have left of it; anything else there is taken for the user's."""


class OutputFolder:
    """A folder that this process holds, and the list of its own files there; see `folders.writing`."""

    def __init__(self, path: Path, command: str, where: str, lock: int = -1, marker: str = MARKER):
        self.path, self.command, self.where = path, command, where
        self.lock = lock
        """The file descriptor that holds the folder, for children to hold it, too."""
        self.marker = path / marker
        content = read_marker(self.marker)
        self.marked = bool(content)
        """Whether a list was there, or has been written since."""
        self.written_by: str = content.get("command", command)
        self._files: dict[str, str] = content.get("files", {})
        self._open: dict[str, dict[str, list[str]]] = content.get("open", {})
        self._staged: list[str] = content.get("staged", [])

    # --- What is ours

    def is_ours(self, path: Path) -> bool:
        """Whether we wrote this file, and nobody has changed or replaced it since."""
        relative = self._relative(path)
        return relative is not None and self._matches(relative)

    def holds_ours(self) -> bool:
        """Whether files of ours are there."""
        return any(map(self._matches, self._files))

    def listed(self, place: str = "") -> list[str]:
        """What the list has at a place, whether or not it is still there; relative to the folder."""
        return [relative for relative in self._files if _is_within(relative, place)]

    def entries(self) -> set[str]:
        """Names right in the folder of what is ours, or has something of ours in it."""
        return {relative.split("/", 1)[0] for relative in self._files if self._matches(relative)}

    def foreign(self, patterns: Iterable[str]) -> list[str]:
        """Files (and links) at these places, as globs, that are not ours; relative to the folder."""
        found = {
            path.relative_to(self.path).as_posix()
            for pattern in patterns
            for path in self.path.glob(pattern)
            if path != self.marker and (path.is_symlink() or not path.is_dir())
        }
        return sorted(relative for relative in found if not self._matches(relative))

    def refuse_foreign(self, patterns: Iterable[str]) -> None:
        """Refuse what is not ours at places that would be written to.

        Raises:
            ConfigError: naming the first.
        """
        foreign = self.foreign(patterns)
        if not foreign:
            return
        what = "was changed since" if foreign[0] in self._files else "is not among the files"
        raise ConfigError(
            f"{self.where} holds {foreign[0]!r}, which {what} that nonpareil listed as its own ({MARKER}; older "
            "versions listed none) and would be replaced; move it away or delete it, or name another directory"
        )

    def refuse_other_command(self) -> None:
        """Refuse a folder of another command, whose files would be mixed with ours or deleted as ours.

        Raises:
            ConfigError: naming the command.
        """
        if self.written_by != self.command and self.holds_ours():
            raise ConfigError(
                f"{self.where} was written by `nonpareil {self.written_by}`; delete it yourself, or name another "
                "directory"
            )

    # --- Writing

    def mark(self) -> None:
        """Write the list before there is a file, so that whatever lies in the folder it is known as ours."""
        self._write()

    def add(self, path: Path, written: Path) -> None:
        """List a file, `written` so far, that is about to get its name; one that has it now stays listed, too."""
        relative = self._relative(path)
        if relative is not None:
            present = self._match(relative) or ""
            self._files[relative] = f"{present} {_identity(written)}".strip()
            self._write()

    @contextmanager
    def adding(self, place: str, names: Sequence[str] = ("*",)) -> Iterator[None]:
        """List what others write for us at a place meanwhile: files of these names that are not there yet.

        After a kill the next command that holds the folder lists them.
        """
        self._open[place] = {"names": list(names), "kept": self.foreign([place, f"{place}/**/*"])}
        self._write()
        try:
            yield
        finally:
            self._list_open(place, killed=False)
            with suppress(OSError):  # a full disk: on it the place stays open, as after a kill
                self._write()

    @contextmanager
    def staged(self, place: str = "") -> Iterator[Path]:
        """A folder to write files into; they are listed, then moved to a place of this folder, each in one step.

        Raises:
            ConfigError: a file at the place is not ours; what was written stays in a folder that the message names.
        """
        staging = self.path / f".nonpareil-{secrets.token_hex(4)}"
        self._staged.append(staging.name)
        self._write()
        staging.mkdir()
        try:
            yield staging
            self._publish(staging, place)
        finally:
            self._sweep()

    def _publish(self, staging: Path, place: str) -> None:
        files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        targets = [self.path / place / file.relative_to(staging) for file in files]
        taken = [target for target in targets if os.path.lexists(target) and not self.is_ours(target)]
        if taken:
            saved = self.path / f"saved{staging.name.removeprefix('.nonpareil')}"
            staging.rename(saved)
            raise ConfigError(
                f"{taken[0]} is not ours to replace; what was to be saved there lies in {saved}"
            )
        for file, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.add(target, file)
            os.replace(file, target)

    # --- Deleting

    def delete(self, place: str = "") -> None:
        """Delete what is ours at a place (a file, a folder, or all), and the folders that this leaves empty."""
        parents: set[Path] = set()
        for relative in self.listed(place):
            if self._matches(relative):
                (self.path / relative).unlink()
                parents.update((self.path / relative).parents)
            del self._files[relative]
        below = [folder for folder in parents if self.path in folder.parents]
        for folder in sorted(below, key=lambda folder: len(folder.parts), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        self._write()

    def recover(self) -> None:
        """List what a killed command left unlisted, and delete what it had not finished."""
        places = (f"{self.marker.name}.*.tmp", *((".*.tmp", "*/.*.tmp") if self.marked else ()))
        for leftover in {path for place in places for path in self.path.glob(place)}:
            if _TEMPORARY.fullmatch(leftover.name) and leftover.parent.resolve() == leftover.parent:
                leftover.unlink()
        for place in list(self._open):
            self._list_open(place, killed=True)
        self._sweep()

    # --- The list

    def _list_open(self, place: str, killed: bool) -> None:
        opened = self._open.pop(place)
        names = opened["names"]
        if killed and names == ["*"]:
            names = list(_CHECKPOINT_FILES)
        for relative in self.foreign([place, f"{place}/**/*"]):
            status = (self.path / relative).lstat()
            named = any(fnmatch(PurePosixPath(relative).name, name) for name in names)
            if named and relative not in opened["kept"] and stat.S_ISREG(status.st_mode):
                self._files[relative] = _identity(self.path / relative)

    def _sweep(self) -> None:
        for name in self._staged:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        if self._staged:
            self._staged = []
            self._write()

    def _matches(self, relative: str) -> bool:
        return self._match(relative) is not None

    def _match(self, relative: str) -> str | None:
        """How the list has a file that is there as listed, and to which no link leads; else None."""
        parts = PurePosixPath(relative).parts
        if relative not in self._files or ".." in parts or relative.startswith("/"):
            return None
        path = self.path
        try:
            for part in parts[:-1]:
                path = path / part
                if not stat.S_ISDIR(path.lstat().st_mode):
                    return None
            path = self.path / relative
            if not stat.S_ISREG(path.lstat().st_mode):
                return None
            identities = self._files[relative].split()
            return next((identity for identity in identities if _is_identity(identity, path)), None)
        except (OSError, ValueError):
            return None

    def _relative(self, path: Path) -> str | None:
        """The path within this folder; None where it, or a link on the way, leads elsewhere."""
        real = Path(os.path.realpath(path.parent)) / path.name
        return real.relative_to(self.path).as_posix() if self.path in real.parents else None

    def _write(self) -> None:
        self.marked, self.written_by = True, self.command
        lists = {"files": self._files, "open": self._open, "staged": self._staged}
        content = json.dumps({"about": _ABOUT, "command": self.command, **lists}, indent=1)
        temporary = self.marker.with_name(f"{self.marker.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("x", encoding="utf-8") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.marker)
        finally:
            temporary.unlink(missing_ok=True)


def read_marker(marker: Path) -> dict[str, Any]:
    """A list of our files; empty where there is none.

    Raises:
        ConfigError: it is damaged, so that nobody can say what is ours.
    """
    if not os.path.lexists(marker):
        return {}
    try:
        content = json.loads(marker.read_bytes()) if not marker.is_symlink() else {}
        sound = isinstance(content["command"], str)
        sound = sound and all(isinstance(identities, str) for identities in content["files"].values())
        sound = sound and all(isinstance(e["names"] + e["kept"], list) for e in content["open"].values())
        sound = sound and all(fnmatch(n, ".nonpareil-*") and "/" not in n for n in content["staged"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ConfigError(f"{marker} is damaged, so what is ours there is unknown; name another directory")
    return content


def _identity(path: Path) -> str:
    status = path.lstat()
    return f"{status.st_size}:{status.st_mtime_ns}:{file_sha256(path)}"


def _is_identity(identity: str, path: Path) -> bool:
    """Whether a file is the listed one; its content is read only where the time alone is another, as in a copy."""
    status = path.lstat()
    size, modified, *content = identity.split(":")
    if size != str(status.st_size):
        return False
    return modified == str(status.st_mtime_ns) or content == [file_sha256(path)]


def _is_within(relative: str, place: str) -> bool:
    return place in ("", relative) or relative.startswith(place + "/")
