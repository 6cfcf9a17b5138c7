"""The rollout folder: one writer at a time, leftovers of a kill swept up, nothing foreign touched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nonpareil.errors import ConfigError
from nonpareil.folders import is_bookkeeping, writing
from nonpareil.markers import OutputFolder
from nonpareil.rollouts.rendering import RENDERED
from nonpareil.rollouts.store import DATA_FOLDER

MANIFEST = "manifest.json"
OWNER = "sample"
"""Whose folders these are, whichever command has them drawn."""
SHARDS = f"{DATA_FOLDER}/*.parquet"


@contextmanager
def locked_folder(folder: Path, *, overwrite: bool) -> Iterator[OutputFolder]:
    """Make the folder fit to write to and hold it against other processes, until the end or death.

    Nothing is deleted yet with `overwrite`; see `delete_rollouts`.

    Raises:
        ConfigError: it is a file, holds something other than rollouts (and no `overwrite`) or, with `overwrite`,
            rollouts that are not listed as ours or have no manifest; it cannot be written to, or another process
            writes to it.
    """
    with writing(folder, OWNER) as held:
        held.refuse_other_command()
        if overwrite:
            _refuse_orphans(held.path)
            held.refuse_foreign([SHARDS, RENDERED, MANIFEST])
        elif not held.marked:
            _refuse_foreign(held.path)
        _delete_temporary(held.path)
        yield held


def check_folder(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a folder that `locked_folder` would refuse; nothing is left there.

    Raises:
        ConfigError: as `locked_folder`.
    """
    with locked_folder(Path(folder), overwrite=overwrite):
        pass


def delete_rollouts(folder: OutputFolder) -> None:
    """Delete the shards and the manifest; every other file stays."""
    folder.delete(DATA_FOLDER)
    folder.delete(RENDERED)
    folder.delete(MANIFEST)  # last: until the shards are gone, it says how they were drawn


def _refuse_foreign(folder: Path) -> None:
    if (folder / MANIFEST).is_file():
        return
    if any(folder.glob(SHARDS)):
        return  # a manifest that was lost is made anew from shards that say how they were drawn
    foreign = sorted(path.name for path in folder.iterdir() if not _is_leftover(path))
    if foreign:
        raise ConfigError(
            f"output_dir={str(folder)!r} exists and holds no rollouts but other things (for example "
            f"{foreign[0]!r}); give a new directory, or overwrite to write beside them (--overwrite)"
        )


def _is_leftover(path: Path) -> bool:
    """Whether a run killed before its manifest was there left it."""
    return is_bookkeeping(path) or (path.name.startswith(f".{MANIFEST}.") and path.suffix == ".tmp")


def _refuse_orphans(folder: Path) -> None:
    shards = sorted(folder.glob(SHARDS))
    if shards and not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{folder / DATA_FOLDER} holds {shards[0].name} but {folder} has no {MANIFEST}, so they may not be "
            "ours to overwrite; delete them, or give another output_dir"
        )


def _delete_temporary(folder: Path) -> None:
    """What a kill left half written where no list says so: of the first file of a run, or of an older version."""
    data = folder / DATA_FOLDER
    shards = () if data.is_symlink() else data.glob(".shard-*.tmp")
    ours = (f".{MANIFEST}.*.tmp", f".{RENDERED}.*.tmp")
    for path in (*(path for name in ours for path in folder.glob(name)), *shards):
        path.unlink()
