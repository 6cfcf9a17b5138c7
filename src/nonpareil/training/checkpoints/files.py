"""Checkpoints as folders: there whole or not at all, known again by a list of their files with checksums.

A checkpoint is written into `checkpoint-N.partial`, given its list, and only then renamed. The list,
`checkpoint.json`, holds the size and SHA-256 of every file, so that one which was cut short or changed afterwards
is noticed before anything is read from it; and it says which files of the folder are ours to delete.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nonpareil.checksums import file_sha256
from nonpareil.files import write_json

LIST = "checkpoint.json"
PARTIAL, ASIDE = ".partial", ".old"
STATE_FILE = "trainer_state.json"
RESUMED_FILES = (STATE_FILE, "optimizer.pt", "scheduler.pt")
NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None where it is not such a name."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else None


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Every folder that has a checkpoint's name, the latest step first."""
    if not output_dir.is_dir():
        return []
    steps = {path: checkpoint_step(path.name) for path in output_dir.iterdir() if path.is_dir()}
    found = {path: step for path, step in steps.items() if step is not None}
    return sorted(found, key=found.__getitem__, reverse=True)


def read_list(folder: Path) -> dict[str, Any] | None:
    """`step`, `run` (what trained it) and `files` of a checkpoint; None where no list, as we wrote it, is there."""
    try:
        stored = json.loads((folder / LIST).read_text(encoding="utf-8"))
        listed = stored["list"]
        return listed if stored["sha256"] == _text_sha256(listed) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_list(folder: Path, step: int, run: dict[str, Any]) -> None:
    """List what the folder holds; every file is on the disk, and not in memory alone, when this returns."""
    files = {}
    for path in sorted(_files_in(folder)):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        noted = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        files[path.relative_to(folder).as_posix()] = noted
    listed = {"step": step, "run": run, "files": files}
    write_json(folder / LIST, {"list": listed, "sha256": _text_sha256(listed)})


def _text_sha256(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint is not whole, naming the file; None where nothing is wrong with it."""
    listed = read_list(folder)
    if listed is None:
        there = (folder / LIST).exists()
        return f"{LIST} is damaged" if there else f"{LIST}, written last, is missing"
    for name, noted in listed["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != noted["bytes"]:
            return f"{name} has {size} bytes of {noted['bytes']}"
        if file_sha256(path) != noted["sha256"]:
            return f"{name} has another content than was written"
    for name in RESUMED_FILES:
        if name not in listed["files"]:
            return f"it holds no {name}: save_only_model saves what cannot be resumed"
    return None


def _is_as_noted(path: Path, noted: dict[str, Any]) -> bool:
    """Or empty, as a crash may leave it: nothing is lost with it."""
    size = path.stat().st_size
    return size == 0 or (size == noted["bytes"] and file_sha256(path) == noted["sha256"])


def last_whole_checkpoint(output_dir: Path, tell: Callable[[Path, str], None] | None = None) -> Path | None:
    """The latest checkpoint that is whole; `tell` hears of each later one, with what is wrong with it."""
    for folder in checkpoints_in(output_dir):
        fault = fault_of(folder)
        if fault is None:
            return folder
        if tell is not None:
            tell(folder, fault)
    return None


# --- Writing and deleting


def begin(partial: Path) -> None:
    """Make an empty folder to write a checkpoint into; what a kill left of earlier ones is swept up."""
    sweep(partial.parent)
    partial.mkdir(parents=True)


def publish(folder: Path, target: Path) -> None:
    """Give a listed folder its name; what has the name so far gives way."""
    if target.is_symlink() or target.exists():
        discard(target)
    os.rename(folder, target)


def discard(checkpoint: Path) -> None:
    """Delete the files of a checkpoint that are as its list has them, and its folder where it then is empty.

    What else lies there, or was changed, is kept, under `checkpoint-N.old`. A kill in between leaves no half
    checkpoint behind: the folder has another name first.
    """
    aside = checkpoint.with_name(checkpoint.name + ASIDE)
    count = 1
    while aside.is_symlink() or aside.exists():
        count += 1
        aside = checkpoint.with_name(f"{checkpoint.name}{ASIDE}-{count}")
    os.rename(checkpoint, aside)
    _delete_listed(aside)


def sweep(output_dir: Path) -> None:
    """Delete what a kill left of checkpoints that were being deleted."""
    for path in _folders(output_dir, rf"{NAME.pattern}{re.escape(ASIDE)}(-\d+)?"):
        _delete_listed(path)


def leftovers(output_dir: Path) -> list[Path]:
    """The folders that a kill left of checkpoints that were being written."""
    return _folders(output_dir, rf"{NAME.pattern}{re.escape(PARTIAL)}")


def remove_empty(folder: Path) -> None:
    """Remove a folder and those in it, as far as no file is there."""
    for inside, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # a file is there
            os.rmdir(inside)


def _folders(output_dir: Path, pattern: str) -> list[Path]:
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if re.fullmatch(pattern, path.name)]
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _delete_listed(folder: Path) -> None:
    if folder.is_symlink():
        return
    for name, noted in (read_list(folder) or {"files": {}})["files"].items():
        path = folder / name
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            continue
        if path.is_file() and not path.is_symlink() and _is_as_noted(path, noted):
            path.unlink()
        if path.parent != folder:
            with suppress(OSError):  # not empty yet
                path.parent.rmdir()
    if read_list(folder) is not None:
        (folder / LIST).unlink()
    with suppress(OSError):  # something else lies there
        folder.rmdir()


def _files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / LIST)
