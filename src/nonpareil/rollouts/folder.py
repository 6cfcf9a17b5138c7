"""The rollout folder: one writer at a time, leftovers of a kill swept up, nothing foreign touched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nonpareil.errors import ConfigError
from nonpareil.files import LOCK, held
from nonpareil.rollouts.rendering import RENDERED
from nonpareil.rollouts.store import DATA_FOLDER

MANIFEST = "manifest.json"


@contextmanager
def locked_folder(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Make the folder fit to write to and hold it against other processes, until the end or death.

    Raises:
        ConfigError: it is a file, holds something other than rollouts (and no `overwrite`), or is being
            written to by another process.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir={str(folder)!r} is a file; give a directory")
    if not overwrite:
        _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, "another process"):
        if overwrite:
            _delete_rollouts(folder)
        _delete_temporary(folder)
        yield


def _refuse_foreign(folder: Path) -> None:
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    if any((folder / DATA_FOLDER).glob("shard-*.parquet")):
        return  # a manifest that was lost is made anew from shards that say how they were drawn
    foreign = sorted(path.name for path in folder.iterdir() if not _is_leftover(path))
    if foreign:
        raise ConfigError(
            f"output_dir={str(folder)!r} exists and holds no rollouts but other things (for example "
            f"{foreign[0]!r}); give a new directory, or overwrite to write beside them (--overwrite)"
        )


def _is_leftover(path: Path) -> bool:
    """Whether a run killed before its manifest was there left it."""
    return path.name == LOCK or (path.name.startswith(f".{MANIFEST}.") and path.suffix == ".tmp")


def _delete_rollouts(folder: Path) -> None:
    shards = list((folder / DATA_FOLDER).glob("shard-*.parquet"))
    if shards and not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{folder / DATA_FOLDER} holds {shards[0].name} but {folder} has no {MANIFEST}, so they may not "
            "be ours to overwrite; delete them, or give another output_dir"
        )
    for shard in shards:
        shard.unlink()
    (folder / RENDERED).unlink(missing_ok=True)
    # Last: until the shards are gone, it says how they were drawn.
    (folder / MANIFEST).unlink(missing_ok=True)


def _delete_temporary(folder: Path) -> None:
    ours = (f".{MANIFEST}.*.tmp", f".{RENDERED}.*.tmp")
    for path in (
        *(path for name in ours for path in folder.glob(name)),
        *(folder / DATA_FOLDER).glob(".shard-*.tmp"),
    ):
        path.unlink()
