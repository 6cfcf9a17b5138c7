"""What a training that was killed before anything could be resumed leaves behind: fit to be started anew."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from nonpareil.files import LOCK
from nonpareil.training.callbacks import METRICS_FILE
from nonpareil.training.checkpoint_files import TEMPORARY, half_moved, leftovers, sweep
from nonpareil.training.figures import COMPLETIONS_FOLDER
from nonpareil.training.spent import SPENT_FILE

_FILES = re.compile(rf"{re.escape(METRICS_FILE)}|{re.escape(SPENT_FILE)}|{TEMPORARY.pattern}")
_FOLDERS = {
    COMPLETIONS_FOLDER: re.compile(r"\.?completions_\d+\.parquet(\.\d+\.tmp)?"),
    "runs": re.compile(r"events\.out\.tfevents\..+"),  # TensorBoard's, a folder for each start
}


def is_leftover(output_dir: Path, besides: Collection[str] = ()) -> bool:
    """Whether a folder holds nothing but what a training writes before its first checkpoint, or half of its result.

    `besides`: names of further files that may lie there and count for nothing.
    """
    known = {*besides, LOCK, *(path.name for path in leftovers(output_dir))}
    known |= {name.split("/")[0] for name in half_moved(output_dir)}
    return all(path.name in known or _is_ours(path) for path in output_dir.iterdir())


def clear_leftovers(output_dir: Path) -> None:
    """Delete them, so that nothing of one run is mixed into another; TensorBoard keeps runs apart itself."""
    for name in half_moved(output_dir):
        (output_dir / name).unlink()
    for path in [path for path in output_dir.iterdir() if _is_ours(path) and path.name != "runs"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    sweep(output_dir)


def _is_ours(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.is_file():
        return _FILES.fullmatch(path.name) is not None
    inside = _FOLDERS.get(path.name)
    files = [file for file in path.rglob("*") if not file.is_dir() or file.is_symlink()]
    return inside is not None and all(inside.fullmatch(file.name) for file in files)
